"""What the benchmarks share: options, the embedded model and its server, turns, tables and results."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from plugin.config import ModelConfig
from plugin.ops.server import Server, ServerConfig, free_ports
from plugin.paths import REPOSITORY
from plugin.repository import variable

MODEL = "emoji"
PROMPT = "red apple, 3d"

Key = TypeVar("Key")


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.<name>`; its help shows the module's docstring as it is written."""
    return argparse.ArgumentParser(
        prog=f"benchmarks.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def check_least(parser: argparse.ArgumentParser, arguments: argparse.Namespace, **least: int) -> None:
    """Ends the program with one sentence where an option is below its least value."""
    for name, value in least.items():
        if getattr(arguments, name) < value:
            parser.error(f"--{name} is {getattr(arguments, name)}, must be at least {value}")


def config_of(model: str = MODEL, repository: Path = REPOSITORY) -> ModelConfig:
    """The settings of a shipped model."""
    return ModelConfig.from_folder(repository / f"{model}_stream")


def use_threads_of(config: ModelConfig) -> None:
    """Gives torch as many threads as the served model has."""
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)


@contextmanager
def embedded_server(parameters: Mapping[str, str] | None = None, repository: Path = REPOSITORY) -> Iterator[Server]:
    """A server of the embedded model, on free ports.

    Args:
        parameters: of the model, in place of those in its config.pbtxt.
        repository: the folder of models.

    Raises:
        ServerError: it cannot be started.
    """
    environment = {variable(MODEL, name): value for name, value in (parameters or {}).items()}
    http_port, grpc_port, metrics_port = free_ports(3)
    config = ServerConfig(repository, "127.0.0.1", http_port, grpc_port, metrics_port, models=(MODEL,))
    with ExitStack() as stack:
        os.environ.update(environment)
        try:
            server = stack.enter_context(Server(config))
        finally:  # other servers must not see this one's parameters
            for name in environment:
                del os.environ[name]
        yield server


def warm_up(ways: Mapping[Key, Callable[[], object]], times: int = 1) -> None:
    """Runs every way without measuring it: first runs are slower, as they fill allocators and caches."""
    for way in ways.values():
        for _ in range(times):
            way()


def take_turns(
    ways: Mapping[Key, Callable[[], object]],
    turns: int,
    device: torch.device | None = None,
    *,
    repeats: int = 1,
    shown_as: str | None = None,
) -> dict[Key, list[float]]:
    """Seconds of one call of each way in each turn.

    All ways run once a turn, so that a machine whose speed drifts slows each of them alike.

    Args:
        ways: what to measure.
        turns: how often.
        device: is waited for before and after each measurement.
        repeats: calls in one measurement.
        shown_as: the label of a progress bar; None for none.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in ways}
    for _ in track(range(turns), shown_as) if shown_as else range(turns):
        for name, way in ways.items():
            synchronize(device)
            began = time.perf_counter()
            for _ in range(repeats):
                way()
            synchronize(device)
            seconds[name].append((time.perf_counter() - began) / repeats)
    return seconds


def synchronize(device: torch.device | None) -> None:
    """Waits for a GPU; returns at once for a CPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def say(text: str) -> None:
    """Prints a sentence as it is."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> None:
    """Prints a table; `numbers` aligns all columns but the first to the right."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and index else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
