"""`triton-taylorseer generate --batch`: the requests of a file, several at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin.cli.options import Connection
from plugin.cli.results import announce, suffix_of
from plugin.cli.terminal import counting_bar, fail, say

if TYPE_CHECKING:
    from clients.batch import BatchItem
    from triton_taylorseer_client import Generation, GenerationError


def generate_batch(
    file: Path,
    folder: Path,
    fields: dict[str, Any],
    connection: Connection,
    jobs: int,
    timeout_s: float | None,
    json_lines: bool,
) -> None:
    """Makes what a file asks for, writes the results into a folder, and ends with an error if a request failed.

    Args:
        file: with a prompt, or a JSON object of fields, on each line.
        folder: for the results; it is made if needed.
        fields: of every request, unless its line says something else.
        connection: to the model.
        jobs: requests that are sent at once.
        timeout_s: seconds for each request; None for no limit.
        json_lines: print each result or error as JSON.
    """
    import asyncio

    from clients.batch import read_batch, run_batch

    with counting_bar() as bar:
        try:
            items = read_batch(file, {name: value for name, value in fields.items() if value is not None})
            folder.mkdir(parents=True, exist_ok=True)
            task = bar.add_task(str(file), total=len(items))
            results = _Results(file, folder, json_lines, on_result=lambda: bar.advance(task))
            batch = run_batch(items, jobs=jobs, done=results.done, timeout_s=timeout_s, **connection.arguments)
            asyncio.run(batch)
        except KeyboardInterrupt:
            fail("cancelled")
        except ExceptionGroup as errors:  # a folder or disk that cannot be written
            fail(errors.exceptions[0])
        except (OSError, ValueError) as error:
            fail(error)
    if results.failed:
        fail(f"{results.failed} of {len(items)} requests failed")


class _Results:
    """Writes and reports each result as it comes, and counts the failed requests."""

    def __init__(self, file: Path, folder: Path, json_lines: bool, on_result: Callable[[], None]) -> None:
        self.failed = 0
        self._file = file
        self._folder = folder
        self._json_lines = json_lines
        self._on_result = on_result

    def done(self, item: BatchItem, result: Generation | GenerationError) -> None:
        self._on_result()
        if isinstance(result, Exception):
            self._failed(item, result)
            return
        output = self._folder / f"{item.stem}{suffix_of(result.is_video)}"
        result.save(output)
        announce(output, result, self._json_lines)

    def _failed(self, item: BatchItem, error: GenerationError) -> None:
        self.failed += 1
        say(": ".join(filter(None, (f"{self._file}:{item.line}", item.title, str(error)))))
        if self._json_lines:
            print(json.dumps({"line": item.line, "error": str(error)}), flush=True)
