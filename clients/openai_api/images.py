"""OpenAI's images API: its answer, and the events of its streams."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from clients.openai_api.answers import (
    data_url,
    file_of,
    file_of_result,
    finite,
    looks_of,
    media_type,
    size_of,
    typed_event,
)
from clients.openai_api.fields import ImageRequest
from clients.openai_api.previews import Previews
from triton_taylorseer_client.messages import Generation, Progress

# OpenAI counts what it bills. Nothing is billed here, but typed clients expect the numbers.
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


class Images:
    """How OpenAI's images API answers a request."""

    def __init__(self, body: ImageRequest) -> None:
        self._body = body

    def answer(self, results: list[Generation]) -> dict[str, Any]:
        """OpenAI's `ImagesResponse`."""
        data = [self._datum(result) for result in results]
        answer = {"created": int(time.time()), "data": data, "background": "opaque", "usage": _USAGE}
        answer["size"] = size_of(results[0].image)
        if not results[0].is_video:  # OpenAI's type has no name for an MP4
            answer["output_format"] = self._body.output_format
        return answer

    def events(self) -> ImageEvents:
        return ImageEvents(self._body)

    def _datum(self, result: Generation) -> dict[str, Any]:
        """One picture, as OpenAI's `Image`, with its report and the type of its file."""
        body = self._body
        as_url = body.response_format == "url"
        picture = {"url": data_url(result, body)} if as_url else {"b64_json": file_of_result(result, body)}
        return picture | {"media_type": media_type(result, body), "report": finite(result.report)}


class ImageEvents:
    """The events of generations, or of edits; `progress` ones are this front's own."""

    def __init__(self, body: ImageRequest) -> None:
        self._body = body
        self._previews = Previews(body)

    def begun(self) -> Iterator[str]:
        yield from ()

    def progressed(self, update: Progress) -> Iterator[str]:
        if self._body.progress:
            queued = {"queue_position": update.queue_position} if update.queue_position else {}
            yield self._event("progress", {"step": update.step, "num_steps": update.num_steps} | queued)
        if (preview := self._previews.due(update)) is not None:
            picture = {"b64_json": file_of(preview.image, self._body)} | looks_of(preview.image, self._body)
            yield self._event("partial_image", picture | {"partial_image_index": preview.index})

    def done(self, result: Generation) -> Iterator[str]:
        picture = {"b64_json": file_of_result(result, self._body)} | looks_of(result.image, self._body)
        yield self._event("completed", picture | {"usage": _USAGE, "report": finite(result.report)})

    def failed(self, error: dict[str, Any]) -> Iterator[str]:
        yield typed_event("error", {"error": error})

    def _event(self, name: str, content: dict[str, Any]) -> str:
        return typed_event(f"{self._body.events}.{name}", {"created_at": int(time.time())} | content)
