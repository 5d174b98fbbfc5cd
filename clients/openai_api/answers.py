"""What answers are made of: JSON, server-sent events, the files of pictures, their reports."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from starlette.responses import JSONResponse

from clients.openai_api.fields import ImageRequest
from triton_taylorseer_client.messages import Generation, Pixels, encoded_image


class Json(JSONResponse):
    """An answer of JSON in ASCII: it can hold any text that a client has sent, lone surrogates too."""

    def render(self, content: Any) -> bytes:
        return dumped(content).encode()


def dumped(content: Any) -> str:
    """JSON as RFC 8259 has it.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def typed_event(kind: str, content: dict[str, Any]) -> str:
    """A server-sent event whose JSON has its type too, as OpenAI's events have it."""
    return f"event: {kind}\ndata: {dumped({'type': kind} | content)}\n\n"


def file_of(image: Pixels, body: ImageRequest, fps: int = 0) -> str:
    """The base64 of a picture's file, or of a video's."""
    return base64.b64encode(encoded_image(image, body.output_format, body.output_compression, fps)).decode()


def file_of_result(result: Generation, body: ImageRequest) -> str:
    """The same of a result."""
    return file_of(result.image, body, result.report.get("fps") or 0)


def data_url(result: Generation, body: ImageRequest) -> str:
    """The same as a URL."""
    return f"data:{media_type(result, body)};base64,{file_of_result(result, body)}"


def media_type(result: Generation, body: ImageRequest) -> str:
    """Of that file."""
    return "video/mp4" if result.is_video else f"image/{body.output_format}"


def size_of(image: Pixels) -> str:
    """Width and height, as OpenAI writes them."""
    _, height, width, _ = image.shape
    return f"{width}x{height}"


def looks_of(image: Pixels, body: ImageRequest) -> dict[str, str]:
    """What OpenAI's objects say of a picture beside its file."""
    return {
        "size": size_of(image),
        "output_format": "mp4" if len(image) > 1 else body.output_format,
        "background": "opaque",
        "quality": "auto",
    }


def finite(value: Any) -> Any:
    """The value, with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
