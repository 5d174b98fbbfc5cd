"""Errors in OpenAI's form: a status, a sentence, the field it is about, and whether to come back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError

from clients.openai_api.answers import Json
from clients.openai_api.fields import ImageRequest
from triton_taylorseer_client.messages import (
    Cancelled,
    DeadlineExceeded,
    GenerationError,
    InvalidArgument,
    Unavailable,
    UnknownModel,
)

NO_OBJECT = "the body must be a JSON object, sent as application/json"
_KINDS: list[tuple[type[GenerationError], int, str]] = [
    (UnknownModel, 404, "model_not_found"),
    (InvalidArgument, 400, "invalid_value"),
    (Unavailable, 503, "unavailable"),
    (DeadlineExceeded, 504, "deadline_exceeded"),
    (Cancelled, 499, "cancelled"),
    (GenerationError, 500, "server_error"),
]
_NO_FIELDS = ("json_invalid", "missing", "model_attributes_type")


def error_answer(
    status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Json:
    """An answer with an error.

    OpenAI's clients send a request again after most errors. `x-should-retry` keeps them from it where the same request
    gets the same answer: errors of the request, and deadlines, whose time they would spend again.
    """
    final = {"x-should-retry": "false"} if status < 500 or status == 504 else {}
    return Json({"error": error_object(status, message, code, param)}, status, {**final, **(headers or {})})


def error_object(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": param, "code": code}


def told(error: GenerationError, kind: type[ImageRequest], sized: bool) -> tuple[int, str, str, str | None]:
    """Status, message, code and field of a request's error.

    Args:
        error: what ended the request.
        kind: of request.
        sized: whether it had a `size`.
    """
    status, code = next((status, code) for each, status, code in _KINDS if isinstance(error, each))
    first_word = "model" if isinstance(error, UnknownModel) else str(error).partition(" ")[0].rstrip(",")
    return status, str(error), code, kind.param_of(first_word, sized)


def generation_error(request: Request, error: Exception) -> Json:
    """The answer to a request that Triton has refused, or that failed there."""
    assert isinstance(error, GenerationError)
    status, message, code, param = told(error, _kind_of(request), getattr(request.state, "sized", False))
    headers = {}
    if isinstance(error, Unavailable):
        seconds = error.retry_after_s or 1.0
        # OpenAI's clients read the milliseconds, others the whole seconds.
        headers = {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(1000 * seconds))}
    return error_answer(status, message, code, param, headers)


def validation_error(request: Request, error: Exception) -> Json:
    """The answer to a body with a wrong field; the first one is told."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [part for part in first["loc"] if isinstance(part, str) and part not in ("body", "query")]
    if first["type"] == "string_unicode" and not place:
        return error_answer(400, f"a field is {_shown(first['input'])}, must be Unicode text", "invalid_value")
    if first["type"] in _NO_FIELDS or not place:
        return error_answer(400, NO_OBJECT, "invalid_value")
    name = place[0]
    if first["type"] == "extra_forbidden":
        message = f"{name[:100]} is not a field, must be one of: {', '.join(sorted(_kind_of(request).model_fields))}"
    else:
        message = f"{name} is {_shown(first.get('input'))}, {_rule(first['msg'])}"
    return error_answer(400, message, "invalid_value", name)


def _kind_of(request: Request) -> type[ImageRequest]:
    """The kind of request that an address takes; set where it is not the usual one."""
    return getattr(request.state, "kind", ImageRequest)


def _shown(value: Any) -> str:
    return json.dumps(_shortened(value), default=str)[:100]


def _shortened(value: Any) -> Any:
    """Without what is cut off anyway: pictures are megabytes."""
    if isinstance(value, bytes):
        return f"a file of {len(value)} bytes"
    if isinstance(value, list):
        return [_shortened(each) for each in value[:20]]
    if isinstance(value, dict):
        return {name[:100]: _shortened(each) for name, each in [*value.items()][:20]}
    return value[:100] if isinstance(value, str) else value


def _rule(message: str) -> str:
    """Pydantic's sentence as what follows a comma."""
    rule = message.removeprefix("Value error, ").replace("Input should be", "must be").replace("String should", "must")
    return rule[0].lower() + rule[1:]
