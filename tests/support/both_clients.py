"""The client with threads and the one with asyncio behind the same methods: the same tests hold for both."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from triton_taylorseer_client import AsyncClient, Client, Generation, Progress


class AsyncioClient:
    """An `AsyncClient` with the methods of a `Client`."""

    def __init__(self, url: str = "localhost:8001", model: str = "emoji", **options: Any) -> None:
        self.runner = asyncio.Runner()

        async def made() -> AsyncClient:
            return AsyncClient(url, model, **options)

        self.client = self.runner.run(made())

    def __enter__(self) -> AsyncioClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.run(self.client.close())
        self.runner.close()

    def generate(self, *given: Any, **fields: Any) -> Generation:
        return self.runner.run(self.client.generate(*given, **fields))

    def description(self) -> dict[str, Any]:
        return self.runner.run(self.client.description())

    def stream(self, *given: Any, **fields: Any) -> Generator[Progress | Generation]:
        updates = self.client.stream(*given, **fields)
        try:
            with suppress(StopAsyncIteration):
                while True:
                    yield self.runner.run(self.next_of(updates))
        finally:
            self.runner.run(updates.aclose())

    async def next_of(self, updates: Any) -> Progress | Generation:
        return await anext(updates)


CLIENTS = {"threads": Client, "asyncio": AsyncioClient}
