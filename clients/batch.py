"""Many requests from a file, several at once, with a result or an error for each."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.lines import read_lines
from triton_taylorseer_client.async_client import AsyncClient
from triton_taylorseer_client.messages import INPUTS, Generation, GenerationError
from triton_taylorseer_client.pictures import MOST_PICTURES, is_data_url


@dataclass(frozen=True)
class BatchItem:
    """One line of a batch file: the request's fields, and the name of its result's file, without a suffix."""

    line: int
    fields: Mapping[str, Any]
    stem: str

    @property
    def title(self) -> str:
        """What the request shows, for people; empty if that is not text, or no label."""
        prompt, label = self.fields.get("prompt"), self.fields.get("class_label")
        if isinstance(prompt, str):
            return prompt.encode(errors="replace").decode()  # JSON can name half of a character
        if isinstance(label, int):
            return f"class {label}"
        picture = _first_path(self.fields)
        return picture.name if picture else ""


def read_batch(path: Path, defaults: Mapping[str, Any]) -> list[BatchItem]:
    """The requests of a file: on each line a prompt, or a JSON object of fields. Empty lines and comments are skipped.

    Args:
        path: of the file, in UTF-8. Paths of pictures on its lines begin at its folder.
        defaults: fields of every request; those of its line replace them.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not valid, or there is none.
    """
    items: list[BatchItem] = []
    for line, text in read_lines(path):
        fields = _located(_fields(text, f"{path}:{line}"), path.parent)
        stem = f"{len(items) + 1:04}-{_words(fields)}".rstrip("-")
        items.append(BatchItem(line, {**defaults, **fields}, stem))
    if not items:
        raise ValueError(f"{path} has no request, must have at least one line with a prompt")
    return items


def _words(fields: Mapping[str, Any]) -> str:
    """What a file's name says of its request."""
    picture = _first_path(fields)
    subject = fields.get("prompt", fields.get("class_label", picture.stem if picture else ""))
    return re.sub(r"\W+", "-", str(subject)).strip("-").lower()[:40]


def _first_path(fields: Mapping[str, Any]) -> Path | None:
    value = fields.get("input_image")
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, Path) else None


def _located(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields with the paths of pictures from where the process runs; other values are left for their check."""

    def located(value: Any) -> Any:
        return folder / value if isinstance(value, str) and not is_data_url(value) else value

    given = {name: fields[name] for name in MOST_PICTURES if name in fields}
    return fields | {
        name: [located(each) for each in value] if isinstance(value, list) else located(value)
        for name, value in given.items()
    }


def _fields(text: str, place: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return {"prompt": text}
    try:
        fields: dict[str, Any] = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"{place} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{place} is not JSON of fields: {error}") from None
    if unknown := sorted(set(fields) - set(INPUTS)):
        raise ValueError(f"{place}: {unknown[0]!r} is not a field, must be one of: {', '.join(INPUTS)}")
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"it names {twice[0]!r} twice")
    return dict(pairs)


async def run_batch(
    items: Sequence[BatchItem],
    *,
    jobs: int,
    done: Callable[[BatchItem, Generation | GenerationError], None],
    timeout_s: float | None = None,
    **connection: Any,
) -> None:
    """Runs all requests, at most `jobs` at a time; a failed one does not end the others.

    Args:
        items: the requests.
        jobs: requests that are sent at once, at least 1.
        done: called with each result or error when it arrives.
        timeout_s: seconds for each request, from when it is sent; None for no limit.
        **connection: arguments of `AsyncClient`.

    Raises:
        OSError, ValueError: one of those is wrong.
    """
    slots = asyncio.Semaphore(jobs)

    async def one(item: BatchItem) -> None:
        async with slots:
            try:
                result: Generation | GenerationError = await _generate(client, item, timeout_s)
            except GenerationError as error:
                result = error
        done(item, result)

    async with AsyncClient(**connection) as client, asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(one(item))


async def _generate(client: AsyncClient, item: BatchItem, timeout_s: float | None) -> Generation:
    result = None
    async for update in client.stream(**item.fields, timeout_s=timeout_s):
        if isinstance(update, Generation):
            result = update
    assert result is not None, "a stream ends with a result or an error"
    return result
