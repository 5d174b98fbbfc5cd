"""Pictures as clients send them: files, base64, data URLs, and addresses."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

MAX_PICTURES = 16  # of one request, as in OpenAI's API
_RULE = "must be a PNG, JPEG or WebP file, in JSON as base64 or a data URL"
_DATA_URL = re.compile(r"data:[^,]{0,100};base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"https?:", re.IGNORECASE)

# As OpenAPI tells of a picture in JSON: a file, or what else `picture` takes.
FILE_SCHEMA = {"type": "string", "description": "a PNG, JPEG or WebP file as base64 or a data URL"}
SCHEMA = {
    "anyOf": [
        {"type": "string", "description": "a PNG, JPEG or WebP file as base64, a data URL or an http(s) address"},
        {"type": "object", "properties": {"image_url": {"type": "string"}}, "required": ["image_url"]},
    ]
}


def or_list(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of one picture or a list of them."""
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_PICTURES}]}


@dataclass(frozen=True)
class Address:
    """Where a picture is to be fetched from."""

    url: str


def picture(value: Any) -> bytes | Address:
    """One picture: a file, its base64, its data URL or its address, or OpenAI's object with one of these.

    Raises:
        ValueError: it is none of them. The message is what the value must be.
    """
    match value:
        case bytes() if value:
            return value
        case str(text) | {"image_url": str(text)}:
            return _of_text(text)
        case {"file_id": str()}:
            raise ValueError("must have an image_url: this front keeps no files")
    raise ValueError(_RULE)


def pictures(value: Any) -> list[bytes | Address]:
    """One picture or a list of them; errors as of `picture`."""
    each = value if isinstance(value, list) else [value]
    if not 1 <= len(each) <= MAX_PICTURES:
        raise ValueError(f"must be 1 to {MAX_PICTURES} pictures")
    return [picture(one) for one in each]


def picture_file(value: Any) -> bytes:
    """One picture that is no address; errors as of `picture`."""
    one = picture(value)
    if isinstance(one, Address):
        raise ValueError(_RULE)
    return one


def picture_files(value: Any) -> list[bytes]:
    """One such picture or a list of them; errors as of `pictures`."""
    return [picture_file(one) for one in pictures(value)]


def _of_text(text: str) -> bytes | Address:
    if _ADDRESS.match(text):
        return Address(text)
    start = _DATA_URL.match(text)
    try:
        file = base64.b64decode("".join(text[start.end() if start else 0 :].split()), validate=True)
    except (binascii.Error, ValueError):  # the second for what is not ASCII
        file = b""
    if not file:
        raise ValueError(_RULE)
    return file
