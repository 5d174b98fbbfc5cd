"""Many requests from a file, several at once, with a result or an error for each."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.async_client import AsyncClient
from clients.messages import INPUTS, Generation, GenerationError


@dataclass(frozen=True)
class BatchItem:
    """One line of a batch file: the request's fields, and the name of its result's file, without a suffix."""

    line: int
    fields: Mapping[str, Any]
    stem: str

    @property
    def title(self) -> str:
        """What the request shows, for people."""
        return str(self.fields.get("prompt") or f"class {self.fields.get('class_label')}")


def read_batch(path: Path, defaults: Mapping[str, Any]) -> list[BatchItem]:
    """The requests of a file: on each line a prompt, or a JSON object of fields. Empty lines and comments are skipped.

    Args:
        path: of the file, in UTF-8.
        defaults: fields of every request; those of its line replace them.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not valid, or there is none.
    """
    items: list[BatchItem] = []
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = text.strip()
        if not text or text.startswith("#"):
            continue
        fields = _fields(text, f"{path}:{line}")
        words = re.sub(r"\W+", "-", str(fields.get("prompt", fields.get("class_label", "")))).strip("-").lower()[:40]
        stem = f"{len(items) + 1:04}-{words}".rstrip("-")
        items.append(BatchItem(line, {**defaults, **fields}, stem))
    if not items:
        raise ValueError(f"{path} has no request, must have at least one line with a prompt")
    return items


def _fields(text: str, place: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return {"prompt": text}
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error}") from None
    if unknown := sorted(set(fields) - set(INPUTS)):
        raise ValueError(f"{place}: {unknown[0]!r} is not a field, must be one of: {', '.join(INPUTS)}")
    return fields


async def run_batch(
    items: Sequence[BatchItem],
    *,
    url: str,
    model: str,
    jobs: int,
    retries: int,
    done: Callable[[BatchItem, Generation | GenerationError], None],
) -> None:
    """Runs all requests, at most `jobs` at a time; a failed one does not end the others.

    Args:
        items: the requests.
        url: host:port of the server's gRPC endpoint.
        model: the model's name.
        jobs: requests that are sent at once, at least 1.
        retries: how often a request is sent again if the server has no room for it.
        done: called with each result or error when it arrives.
    """
    slots = asyncio.Semaphore(jobs)

    async def one(item: BatchItem) -> None:
        async with slots:
            try:
                result: Generation | GenerationError = await _generate(client, item)
            except GenerationError as error:
                result = error
        done(item, result)

    async with AsyncClient(url, model, retries=retries) as client, asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(one(item))


async def _generate(client: AsyncClient, item: BatchItem) -> Generation:
    result = None
    async for update in client.stream(**item.fields):
        if isinstance(update, Generation):
            result = update
    assert result is not None, "a stream ends with a result or an error"
    return result
