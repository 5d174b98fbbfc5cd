"""The bodies of requests that may hold pictures: a form with files, or JSON."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser

from clients.openai_api.edge import MAX_EDIT_BYTES
from clients.openai_api.edit_fields import EditRequest
from clients.openai_api.errors import NO_OBJECT
from triton_taylorseer_client.messages import INPUTS, InvalidArgument

NO_BODY = "the body must be a form, sent as multipart/form-data, or a JSON object, sent as application/json"
_MAX_FILES = 64  # more than may be sent, so that too many are refused by their field
_MAX_FIELDS = 200
_MAX_PARTS = 20_000  # brackets and commas of JSON: what parsing costs, besides one copy of long text
_FREE_TEXT = ("prompt", "negative_prompt")
_TEXT = {
    *("model", "size", "response_format", "output_format"),
    *(name for name, kind in INPUTS.items() if kind == "BYTES"),
}
_NULL = ("", b"", "null")  # as OpenAI's clients for Python and for JavaScript write it, and an empty file
_NO_TEXT = re.compile(r"true|false|-?\d[\d.eE+-]*|-?Infinity|NaN")

_Value = str | bytes
_Body = TypeVar("_Body", bound=BaseModel)


async def fields_of(request: Request, kind: type[EditRequest] = EditRequest) -> dict[str, Any]:
    """The fields of a kind of request: files as bytes, the text of a form as JSON would have it.

    Raises:
        InvalidArgument: the body cannot be read, or one field is given twice.
        HTTPException: it is too large.
    """
    media_type, body = _media_type_of(request), await request.body()
    if media_type == "multipart/form-data":
        return _of_form(await _form(request, body), kind)
    if media_type == "application/json":
        return await asyncio.to_thread(_of_json, body, NO_BODY)
    raise InvalidArgument(NO_BODY)


async def object_of(request: Request) -> dict[str, Any]:
    """The fields of a request that is JSON.

    Raises:
        InvalidArgument: the body cannot be read.
        HTTPException: it is too large.
    """
    body = await request.body()
    if _media_type_of(request) != "application/json":
        raise InvalidArgument(NO_OBJECT)
    return await asyncio.to_thread(_of_json, body, NO_OBJECT)


async def checked(kind: type[_Body], fields: dict[str, Any]) -> _Body:
    """The fields as a kind of request.

    Raises:
        RequestValidationError: a field is wrong.
    """
    try:
        # In a thread: pictures in base64 take a moment to decode.
        return await asyncio.to_thread(kind.model_validate, fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _media_type_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _of_json(body: bytes, otherwise: str) -> dict[str, Any]:
    parts = sum(map(body.count, (b"[", b"{", b",")))
    if parts > _MAX_PARTS:
        raise InvalidArgument(f"the body has {parts} brackets and commas, must have at most {_MAX_PARTS}")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidArgument(otherwise)
    return fields


async def _form(request: Request, body: bytes) -> list[tuple[str, _Value]]:
    """The names and values of a form, in its order."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, whole(), max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=MAX_EDIT_BYTES
    )
    parser.spool_max_size = MAX_EDIT_BYTES + 1  # no file is written to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidArgument(f"the form cannot be read: {error.message}") from None
    return [(name, value if isinstance(value, str) else await value.read()) for name, value in form.multi_items()]


def _of_form(items: list[tuple[str, _Value]], kind: type[EditRequest]) -> dict[str, Any]:
    given: dict[str, list[_Value]] = {}
    for name, value in items:
        given.setdefault(name.partition("[")[0], []).append(value)  # image[], svg[model]
    return {name: _value(name, values, kind) for name, values in given.items()}


def _value(name: str, values: list[_Value], kind: type[EditRequest]) -> Any:
    first, field = values[0], kind.model_fields.get(name)
    if field is None or field.annotation is Any:
        return values if len(values) > 1 else None if first in _NULL else first
    if len(values) > 1:
        raise InvalidArgument(f"{name} is given {len(values)} times, must be given once")
    if isinstance(first, bytes):
        raise InvalidArgument(f"{name} is a file, must be text")
    return _of_text(name, first)


def _of_text(name: str, text: str) -> Any:
    """What JSON would have in place of a text."""
    if name in _FREE_TEXT:
        return text
    if text in _NULL:
        return None
    if name in _TEXT or not _NO_TEXT.fullmatch(text):
        return text
    try:
        return json.loads(text)
    except ValueError:  # as 1.2.3
        return text
