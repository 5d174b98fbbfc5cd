"""A request with `stream`: server-sent events, with progress and previews before the picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.responses import StreamingResponse

from triton_taylorseer_client.messages import Generation, GenerationError, Progress
from clients.openai_api.answers import completed, dumped, picture_of_event
from clients.openai_api.errors import error_object, told
from clients.openai_api.fields import ImageRequest
from clients.openai_api.front import Updates

_PING_S = 15.0  # a proxy ends a connection on which nothing is sent for about a minute
_REFUSED_WITHIN_S = 2.0  # a refusal within this time has an HTTP status; later errors are events of the stream

_Upcoming = asyncio.Future[Progress | Generation]


async def streamed(body: ImageRequest, updates: Updates, request_id: str) -> StreamingResponse:
    """A response of server-sent events.

    Raises:
        GenerationError: the request is refused at once. It gets the error's own HTTP status.
    """
    first: _Upcoming = asyncio.ensure_future(anext(updates))
    try:
        await asyncio.wait({first}, timeout=_REFUSED_WITHIN_S)
        if first.done():
            first.result()
    except BaseException:
        await _close(updates, first)
        raise
    return StreamingResponse(
        _events(body, updates, first, request_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(body: ImageRequest, updates: Updates, upcoming: _Upcoming, request_id: str) -> AsyncIterator[str]:
    previews = _Previews(body)
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=_PING_S)
            if not upcoming.done():
                yield ": waiting\n\n"
                continue
            update = upcoming.result()
            if isinstance(update, Generation):
                # In a thread: a large picture takes a moment to encode, a video seconds.
                yield _event(body, "completed", await asyncio.to_thread(completed, update, body))
                return
            if body.progress:
                yield _event(body, "progress", {"step": update.step, "num_steps": update.num_steps})
            if picture := await previews.due(update):
                yield _event(body, "partial_image", picture)
            upcoming = asyncio.ensure_future(anext(updates))
    except GenerationError as error:
        content = {**error_object(*told(error, type(body), body.size != "auto")), "request_id": request_id}
        yield f"event: error\ndata: {dumped({'type': 'error', 'error': content})}\n\n"
    finally:
        await _close(updates, upcoming)


class _Previews:
    """Chooses the previews that are sent: `partial_images` of them, evenly spread, or all for `preview` alone."""

    def __init__(self, body: ImageRequest) -> None:
        self._body = body
        self._sent = 0

    async def due(self, update: Progress) -> dict[str, Any] | None:
        """The event's content, if the update has a preview that is to be sent."""
        if update.preview is None or not self._is_due(update):
            return None
        picture = await asyncio.to_thread(picture_of_event, update.preview[None], self._body)
        self._sent += 1
        return picture | {"partial_image_index": self._sent - 1}

    def _is_due(self, update: Progress) -> bool:
        wanted = self._body.partial_images
        if not wanted:
            return self._body.wants_previews
        return self._sent < wanted and update.step >= (self._sent + 1) * update.num_steps / (wanted + 1)


async def _close(updates: Updates, upcoming: _Upcoming) -> None:
    """Ends the request, whatever it is at."""
    upcoming.cancel()
    with suppress(BaseException):
        await upcoming
    await updates.aclose()


def _event(body: ImageRequest, name: str, data: dict[str, Any]) -> str:
    kind = f"{body.events}.{name}"
    return f"event: {kind}\ndata: {dumped({'type': kind, 'created_at': int(time.time())} | data)}\n\n"
