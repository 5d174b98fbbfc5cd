"""What the endpoints that make pictures have in common: from a checked request to its answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from fastapi import Request, Response

from clients.openai_api.answers import Json
from clients.openai_api.dialects import Dialect
from clients.openai_api.fields import ImageRequest
from clients.openai_api.front import Front, Updates
from clients.openai_api.images import Images
from clients.openai_api.streaming import streamed
from clients.openai_api.targets import Target
from triton_taylorseer_client.messages import Cancelled, Generation, GenerationError, Unavailable

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context

_Result = TypeVar("_Result")


async def made(body: ImageRequest, request: Request, front: Front, dialect: Dialect | None = None) -> Response:
    """The answer to a request for pictures: all of them, or a stream.

    Args:
        body: what is asked for.
        request: it came with.
        front: to be asked.
        dialect: of the answer; None for OpenAI's images API.

    Raises:
        GenerationError: one of them cannot be made.
    """
    request.state.sized = body.size != "auto"
    target = await front.served(body.model)
    with told_when_to_return(request, front, target, body.n):
        return await _answered(body, request, front, target, dialect or Images(body))


def streams_of(body: ImageRequest, request: Request, front: Front, target: Target) -> list[Updates]:
    """What `Front.stream` yields for each picture that is asked for."""
    headers, request_id = _trace_headers(request), request.state.request_id
    return [front.stream(target, fields, headers, request_id) for fields in body.requests()]


@contextmanager
def told_when_to_return(request: Request, front: Front, target: Target, places: int) -> Iterator[None]:
    """Adds to a refusal for want of room when there is some, for that many pictures."""
    try:
        yield
    except Unavailable as refusal:
        # Who has come back in vain shows that places take longer than was told.
        raise front.when_to_return(refusal, target.model, places * _tries(request)) from None


async def _answered(body: ImageRequest, request: Request, front: Front, target: Target, dialect: Dialect) -> Response:
    streams = streams_of(body, request, front, target)
    if body.stream:
        return await streamed(body, dialect.events(), streams[0], request.state.request_id)
    results = await _unless_gone(request, together([_last_of(updates) for updates in streams]))
    # In a thread: a large picture takes a moment to encode, a video seconds.
    return Json(await asyncio.to_thread(dialect.answer, results))


def _tries(request: Request) -> int:
    """How often OpenAI's client has sent the request, as it tells."""
    told = request.headers.get("x-stainless-retry-count", "")
    return 1 + int(told) if re.fullmatch("[0-9]", told) else 1


def _trace_headers(request: Request) -> dict[str, str]:
    """The header that makes Triton's spans part of the caller's trace."""
    traceparent = request.headers.get("traceparent", "")
    return {"traceparent": traceparent} if _TRACEPARENT.fullmatch(traceparent) else {}


async def _last_of(updates: Updates) -> Generation:
    async with aclosing(updates):  # closing it cancels the request
        async for update in updates:
            if isinstance(update, Generation):
                return update
    raise GenerationError("the stream ended without a picture")


async def together(requests: list[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """All results; the first failure cancels the others."""
    tasks = [asyncio.ensure_future(each) for each in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, list[Generation]]) -> list[Generation]:
    """The result, or `Cancelled` as soon as the HTTP client disconnects."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    result, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({result, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        raise Cancelled("the client has disconnected")
    finally:
        for task in (result, leaving):
            task.cancel()
        await asyncio.wait({result, leaving})
