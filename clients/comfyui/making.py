"""Makes the pictures of one node in one run: side by side, on servers in turn, with progress, until interrupted."""

from __future__ import annotations

import asyncio
import json
import queue
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from triton_taylorseer_client import (
    AsyncClient,
    Generation,
    GenerationError,
    InvalidArgument,
    Progress,
    Unavailable,
    UnknownModel,
)

from .background import run
from .checks import check
from .connection import Connection, limits_of
from .host import raise_if_interrupted
from .pixels import Pixels
from .progress import Shown

_PICTURES = ("input_image", "mask_image")
_AT_ONCE = 32  # requests; a server runs fewer at a time, and packs them

Fields = Mapping[str, Any]
Tell = Callable[[int, Progress], None]


@dataclass(frozen=True)
class Made:
    """One result.

    Attributes:
        image: (frames, height, width, 3) uint8.
        record: how it was made, for the file: model, fields without pictures, and the server's report.
    """

    image: Pixels
    record: dict[str, Any]


def make(connection: Connection, requests: Sequence[Fields]) -> list[Made]:
    """What the requests ask for, in their order.

    They are sent side by side, so that a server packs them, and to several servers in turn. When the run is
    interrupted, or one of them fails, the others are cancelled on the server too.

    Args:
        connection: where they go.
        requests: the fields of each; at least one.

    Raises:
        InvalidArgument: a value is out of the model's range.
        GenerationError: what else went wrong; of several, the message says with which.
    """
    told: queue.SimpleQueue[tuple[int, Progress]] = queue.SimpleQueue()
    shown = Shown([fields.get("num_inference_steps", 1) for fields in requests])

    def look() -> None:
        raise_if_interrupted()
        if told.empty():
            return
        while not told.empty():
            shown.take(*told.get())
        shown.show()

    batch = _Batch(connection, requests, lambda place, progress: told.put((place, progress)))
    results = run(batch.make, look)
    return [
        Made(result.image, _record(connection, fields, result))
        for fields, result in zip(requests, results, strict=True)
    ]


def records_of(made: Sequence[Made]) -> str:
    """The report of a node: JSON, a list with the record of each result."""
    return json.dumps([each.record for each in made], ensure_ascii=False, indent=1)


def _record(connection: Connection, fields: Fields, result: Generation) -> dict[str, Any]:
    sent = {name: value for name, value in fields.items() if name not in _PICTURES}
    return {"model": connection.model, "fields": sent, "report": result.report}


class _Batch:
    """Requests that are made side by side; lives in one event loop."""

    def __init__(self, connection: Connection, requests: Sequence[Fields], tell: Tell) -> None:
        self._connection = connection
        self._requests = requests
        self._tell = tell
        self._clients: dict[str, AsyncClient] = {}

    async def make(self) -> list[Generation]:
        """All results, or the first failure once the others have ended."""
        at_once = asyncio.Semaphore(_AT_ONCE)
        async with AsyncExitStack() as self._open:
            tasks = [
                asyncio.ensure_future(self._one(place, fields, at_once)) for place, fields in enumerate(self._requests)
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            self._raise_failure(ended)
            return [result for result in ended if isinstance(result, Generation)]

    def _raise_failure(self, ended: Sequence[Generation | BaseException]) -> None:
        failures = [
            (place, each)
            for place, each in enumerate(ended)
            if isinstance(each, BaseException) and not isinstance(each, asyncio.CancelledError)
        ]
        if not failures:
            return
        place, failure = failures[0]
        if isinstance(failure, InvalidArgument) or not isinstance(failure, GenerationError) or len(ended) == 1:
            raise failure
        made = sum(isinstance(each, Generation) for each in ended)
        which = f"picture {place + 1} of {len(ended)} (seed {self._requests[place].get('seed')})"
        raise type(failure)(f"{which}: {failure}; {made} others were made, the rest was cancelled")

    async def _one(self, place: int, fields: Fields, at_once: asyncio.Semaphore) -> Generation:
        """Tries the servers in turn, again and again while all that answer are full."""
        async with at_once:
            while True:
                refusals: list[GenerationError] = []
                for url in self._connection.turns.take():
                    try:
                        return await self._at(url, place, fields)
                    except (Unavailable, UnknownModel) as refusal:
                        refusals.append(refusal)
                        if isinstance(refusal, Unavailable) and refusal.retry_after_s is None:
                            self._connection.turns.skip(url)
                await asyncio.sleep(_pause_s(refusals) * random.uniform(1.0, 1.5))

    async def _at(self, url: str, place: int, fields: Fields) -> Generation:
        client = await self._client(url)
        limits = await limits_of(client, url)
        self._connection.turns.answers(url)
        check(fields, limits)
        preview = True if self._connection.preview else None
        steps = 0
        async with aclosing(client.stream(**fields, preview=preview)) as updates:
            async for update in updates:
                if isinstance(update, Generation):
                    self._tell(place, Progress(steps, steps))
                    return update
                steps = update.num_steps
                self._tell(place, update)
        raise AssertionError("a stream ends with a result or an error")

    async def _client(self, url: str) -> AsyncClient:
        if url not in self._clients:
            self._clients[url] = self._connection.client(url)
            await self._open.enter_async_context(self._clients[url])
        return self._clients[url]


def _pause_s(refusals: Sequence[GenerationError]) -> float:
    """Seconds after which one of the servers has room.

    Raises:
        GenerationError: none of them can make it; the message has what each says.
    """
    hints = [each.retry_after_s for each in refusals if isinstance(each, Unavailable)]
    if pauses := [hint for hint in hints if hint is not None]:
        return min(pauses)
    if len(refusals) == 1:
        raise refusals[0]
    raise Unavailable("; ".join(dict.fromkeys(map(str, refusals))))
