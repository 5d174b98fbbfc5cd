"""What a request gets: pictures and reports in OpenAI's form."""

from __future__ import annotations

import base64
import json
import math
import time
from typing import Any

from starlette.responses import JSONResponse

from triton_taylorseer_client.messages import Generation, Pixels, encoded_image
from clients.openai_api.fields import ImageRequest

# OpenAI counts what it bills. Nothing is billed here, but typed clients expect the numbers.
USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


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


def plain_answer(results: list[Generation], body: ImageRequest) -> dict[str, Any]:
    """The answer of a request without `stream`, as OpenAI's `ImagesResponse`."""
    data = [_datum(result, body) for result in results]
    answer = {"created": int(time.time()), "data": data, "background": "opaque", "usage": USAGE}
    answer["size"] = _size(results[0].image)
    if not results[0].is_video:  # OpenAI's type has no name for an MP4
        answer["output_format"] = body.output_format
    return answer


def picture_of_event(image: Pixels, body: ImageRequest, fps: int = 0) -> dict[str, Any]:
    """What the events of a stream that have a picture have in common."""
    return {
        "b64_json": _base64(image, body, fps),
        "size": _size(image),
        "output_format": "mp4" if len(image) > 1 else body.output_format,
        "background": "opaque",
        "quality": "auto",
    }


def completed(result: Generation, body: ImageRequest) -> dict[str, Any]:
    """The last event of a stream."""
    report = finite(result.report)
    return picture_of_event(result.image, body, _fps(report)) | {"usage": USAGE, "report": report}


def finite(value: Any) -> Any:
    """The value, with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _datum(result: Generation, body: ImageRequest) -> dict[str, Any]:
    """One picture, as OpenAI's `Image`, with its report and the type of its file."""
    report = finite(result.report)
    file = _base64(result.image, body, _fps(report))
    media_type = "video/mp4" if result.is_video else f"image/{body.output_format}"
    picture = {"url": f"data:{media_type};base64,{file}"} if body.response_format == "url" else {"b64_json": file}
    return picture | {"media_type": media_type, "report": report}


def _fps(report: dict[str, Any]) -> int:
    return report.get("fps") or 0


def _base64(image: Pixels, body: ImageRequest, fps: int) -> str:
    return base64.b64encode(encoded_image(image, body.output_format, body.output_compression, fps)).decode()


def _size(image: Pixels) -> str:
    _, height, width, _ = image.shape
    return f"{width}x{height}"
