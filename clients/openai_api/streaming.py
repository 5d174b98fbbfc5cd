"""A request with `stream`: server-sent events, with progress and previews before the picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.responses import StreamingResponse

from clients.openai_api.dialects import Events
from clients.openai_api.errors import error_object, told
from clients.openai_api.fields import ImageRequest
from clients.openai_api.front import Updates
from clients.openai_api.refusals import REFUSED_WITHIN_S
from triton_taylorseer_client.messages import Generation, GenerationError, Progress

_PING_S = 15.0  # a proxy ends a connection on which nothing is sent for about a minute

_Upcoming = asyncio.Future[Progress | Generation]


async def streamed(body: ImageRequest, events: Events, updates: Updates, request_id: str) -> StreamingResponse:
    """A response of server-sent events.

    Raises:
        GenerationError: the request is refused at once. It gets the error's own HTTP status.
    """
    first: _Upcoming = asyncio.ensure_future(anext(updates))
    try:
        await asyncio.wait({first}, timeout=REFUSED_WITHIN_S)
        if first.done():
            first.result()
    except BaseException:
        await _close(updates, first)
        raise
    return StreamingResponse(
        _sent(body, events, updates, first, request_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _sent(
    body: ImageRequest, events: Events, updates: Updates, upcoming: _Upcoming, request_id: str
) -> AsyncIterator[str]:
    try:
        for event in events.begun():
            yield event
        while True:
            await asyncio.wait({upcoming}, timeout=_PING_S)
            if not upcoming.done():
                yield ": waiting\n\n"
                continue
            update = upcoming.result()
            for event in await _events_of(events, update):
                yield event
            if isinstance(update, Generation):
                return
            upcoming = asyncio.ensure_future(anext(updates))
    except GenerationError as error:
        content = {**error_object(*told(error, type(body), body.size != "auto")), "request_id": request_id}
        for event in events.failed(content):
            yield event
    finally:
        await _close(updates, upcoming)


async def _events_of(events: Events, update: Progress | Generation) -> list[str]:
    if isinstance(update, Generation):
        # In a thread: a large picture takes a moment to encode, a video seconds.
        return await asyncio.to_thread(lambda: list(events.done(update)))
    if update.preview is None:
        return list(events.progressed(update))
    return await asyncio.to_thread(lambda: list(events.progressed(update)))


async def _close(updates: Updates, upcoming: _Upcoming) -> None:
    """Ends the request, whatever it is at."""
    upcoming.cancel()
    with suppress(BaseException):
        await upcoming
    await updates.aclose()
