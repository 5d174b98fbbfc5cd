"""Where a forecast step's time goes, now and at an earlier commit.

    python -m benchmarks.forecast_profile                    this tree
    python -m benchmarks.forecast_profile --against bb8d716~1

The embedded model in process with TaylorSeer's own cache settings, which every commit knows. Every part is timed by
itself; what a step takes beyond them is the pipeline's own loop. The tree of an earlier commit is unpacked beside this
one and measured by this same file, in processes that take turns with this tree's. The result also has what forecast
steps once did and no longer do, each timed alone in a loop: an estimate of what each omission gains.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

# This file runs in the trees of earlier commits too: it imports nothing that they may lack.
from benchmarks.environment import RESULTS, ROOT, describe
from plugin.config import ModelConfig
from taylorseer import CacheConfig, CacheSession, StepKind, forecast_weights

try:
    from plugin.denoising.events import NoEvents
    from plugin.denoising.generation import generate
    from plugin.denoising.host import PipelineHost
    from plugin.denoising.loading import load_pipeline
    from plugin.denoising.transformer import DenoisingRun
except ImportError:  # before plugin/ had folders
    from plugin.generation import NoEvents, generate  # type: ignore[import-not-found, no-redef]
    from plugin.transformer import DenoisingRun  # type: ignore[import-not-found, no-redef]

    from plugin.pipeline import PipelineHost, load_pipeline  # type: ignore[attr-defined, no-redef]

MODEL = "emoji"
CACHE = CacheConfig(interval=5, order=1, warmup_steps=3)
_STEP = "whole step"
_REST = "pipeline's loop, bookkeeping, events"


class _Steps(NoEvents):
    """Keeps the parts of each forecast step, microseconds; those of full steps are dropped."""

    def __init__(self) -> None:
        self.forecasts: list[dict[str, float]] = []
        self._parts: dict[str, float] = {}

    def add(self, part: str, seconds: float) -> None:
        self._parts[part] = self._parts.get(part, 0.0) + 1e6 * seconds

    def step_done(self, kind: StepKind, seconds: float) -> None:
        # The step's own transformer call and scheduler step are over; of the next step only `enter` has been called.
        if kind is StepKind.FORECAST:
            self.forecasts.append({**self._parts, _STEP: 1e6 * seconds})
        self._parts.clear()


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes JSON."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.forecast_profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against", metavar="COMMIT", action="append", default=[], help="another tree to measure; repeatable"
    )
    parser.add_argument("--turns", type=int, default=5, help="processes of each tree")
    parser.add_argument("--pictures", type=int, default=20, help="of each process")
    parser.add_argument("--output", type=Path, default=RESULTS / "forecast_profile.json")
    parser.add_argument("--one", action="store_true", help="measure in this process and print JSON")
    arguments = parser.parse_args(argv)
    for name in ("turns", "pictures"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}, must be at least 1")
    if arguments.one:
        print(json.dumps(measure(arguments.pictures)))
        return
    with ExitStack() as stack:
        trees = {commit: stack.enter_context(_tree_of(commit)) for commit in arguments.against} | {"now": ROOT}
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in track(range(arguments.turns), "turns"):
            for name, tree in trees.items():
                runs[name].append(_measured_in(tree, arguments.pictures))
    microseconds = {name: {part: median(run[part] for run in each) for part in each[0]} for name, each in runs.items()}
    result = describe() | {"model": MODEL, "turns": arguments.turns, "pictures": arguments.pictures}
    result |= {"cache": asdict(CACHE), "microseconds": microseconds, "microseconds_all": runs}
    result["microseconds_alone"] = measure_alone()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(microseconds, result["microseconds_alone"])
    Console().print(f"wrote {arguments.output}", highlight=False, soft_wrap=True)


def measure(pictures: int) -> dict[str, float]:
    """Microseconds of each part of a forecast step, medians over all forecast steps of that number of pictures."""
    config = ModelConfig.from_folder(ROOT / "model_repository" / f"{MODEL}_stream")
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    host = PipelineHost(load_pipeline(config.source), config.engine, engine_threads=config.engine_threads or None)
    request = replace(config.defaults, prompt="red apple, 3d", seed=1, cache=CACHE)
    steps = _Steps()
    scheduler = type(host.pipeline_for(request.cache).scheduler)
    with ExitStack() as stack:
        for owner, method, part in (
            (DenoisingRun, "enter", "which step, which branch"),
            (type(host.family), "condition", "modulation of the step"),
            (CacheSession, "forecast", "forecast"),
            (type(host.family), "finish", "output layer"),
            (scheduler, "step", "sampler step"),
        ):
            stack.enter_context(_timed(owner, method, part, steps))
        for picture in range(pictures + 2):
            generate(host, request, steps, max_sequence_length=config.max_sequence_length)
            if picture == 1:  # the first ones are slower: allocators and caches fill
                steps.forecasts.clear()
    parts = {part: median(step[part] for step in steps.forecasts) for part in steps.forecasts[0]}
    whole = parts.pop(_STEP)
    return parts | {_REST: whole - sum(parts.values()), _STEP: whole}


def measure_alone() -> dict[str, float]:
    """Microseconds of what forecast steps no longer do, each the shortest of many loops."""
    config = ModelConfig.from_folder(ROOT / "model_repository" / f"{MODEL}_stream")
    transformer: Any = load_pipeline(config.source).transformer
    features = torch.randn(2, 1, 64, transformer.inner_dim)  # two anchors of 64 x 64 pixels
    signature = inspect.signature(type(transformer).forward)
    given = dict.fromkeys(list(signature.parameters)[1:])
    embed, timestep = transformer.time_text_embed, torch.tensor([500.0])

    def two_passes() -> torch.Tensor:
        return torch.mul(features[0], -0.6).add_(features[1], alpha=1.6)

    def one_pass() -> torch.Tensor:
        return torch.lerp(features[0], features[1], 1.6)

    def bound() -> None:
        signature.bind(transformer, **given).apply_defaults()

    return {
        "weights of a forecast": _microseconds(lambda: forecast_weights("taylor", 1, (27, 32), 35)),
        "a second pass over the anchors": _microseconds(two_passes) - _microseconds(one_pass),
        "arguments bound by inspect": _microseconds(bound),
        "embedding of the timestep": _microseconds(lambda: embed.timestep_embedder(embed.time_proj(timestep))),
    }


def _microseconds(run: Callable[[], object]) -> float:
    with torch.no_grad():
        return min(timeit.repeat(run, number=100, repeat=50)) / 100 * 1e6


@contextmanager
def _timed(owner: Any, method: str, part: str, steps: _Steps) -> Iterator[None]:
    """Adds the seconds of every call of a class's method to a part."""
    before = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return before(*args, **kwargs)
        finally:
            steps.add(part, time.perf_counter() - began)

    setattr(owner, method, timed)
    try:
        yield
    finally:
        setattr(owner, method, before)


@contextmanager
def _tree_of(commit: str) -> Iterator[Path]:
    """The files of an earlier commit, with this one among them."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "tree.tar"
        subprocess.run(["git", "-C", str(ROOT), "archive", "--output", str(archive), commit], check=True)
        tree = Path(folder) / "tree"
        with tarfile.open(archive) as files:
            files.extractall(tree, filter="data")
        shutil.copy(__file__, tree / "benchmarks")
        yield tree


def _measured_in(tree: Path, pictures: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.forecast_profile", "--one", "--pictures", str(pictures)]
    done = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _print(microseconds: dict[str, dict[str, float]], alone: dict[str, float]) -> None:
    table = Table(title=f"{MODEL}: a forecast step, microseconds")
    table.add_column("part")
    for name in microseconds:
        table.add_column(name, justify="right")
    for part in microseconds["now"]:
        table.add_row(part, *(f"{each[part]:.0f}" for each in microseconds.values()))
    Console().print(table)
    for part, value in alone.items():
        Console().print(f"{part}, alone: {value:.0f} microseconds", highlight=False)


if __name__ == "__main__":
    main()
