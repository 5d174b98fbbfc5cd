"""One full step of the embedded model's block stack in each engine that a machine without a GPU has.

    python -m benchmarks.engines

Each engine runs the same random inputs of the model's size, on as many threads as torch has, and must give what torch
gives. They take turns, so that drift in the machine's speed affects all of them alike. Each is built before that, in a
cache of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import MODEL, check_least, config_of, parser_of, say, show, take_turns, warm_up, write
from plugin.denoising.loading import load_pipeline
from plugin.engines import make_engine
from plugin.engines.base import Engine
from plugin.families import family_of
from plugin.families.base import Family
from plugin.serving.plan import architecture_of, axis_sizes, example_request
from taylorseer.session import relative_distance

ENGINES = ("torch", "onnxruntime", "inductor")
BATCHES = (1, 4)
_WARM_UPS = 10


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes JSON."""
    parser = parser_of("engines", __doc__)
    parser.add_argument("--turns", type=int, default=200, help="of every engine and batch")
    parser.add_argument("--output", type=Path, default=RESULTS / "engines.json")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1)
    result = measure(arguments.turns)
    write(arguments.output, result)
    _print(result)
    say(f"wrote {arguments.output}")


def measure(turns: int) -> dict[str, Any]:
    """Every engine at every batch.

    Args:
        turns: of each.
    """
    config, threads = config_of(), torch.get_num_threads()
    family = family_of(load_pipeline(config.source, denoisers_only=True).transformer)
    with TemporaryDirectory() as cache:
        made = {name: _made(name, family, Path(cache), threads) for name in ENGINES}
    axes = axis_sizes(family, config, architecture_of(config.source.pipeline), example_request(config))
    rows = []
    with torch.no_grad():
        for batch in BATCHES:
            inputs = family.inputs_of_size({"batch": batch, **axes})
            ways: dict[str, Callable[[], torch.Tensor]] = {
                name: partial(engine.run, inputs) for name, (engine, _) in made.items()
            }
            warm_up(ways, _WARM_UPS)
            expected = ways["torch"]().clone()
            distances = {name: relative_distance(way(), expected) for name, way in ways.items()}
            seconds = take_turns(ways, turns, shown_as=f"batch {batch}")
            rows += [
                {
                    "batch": batch,
                    "engine": name,
                    "ms": 1000 * median(seconds[name]),
                    "of_torch": median(a / b for a, b in zip(seconds[name], seconds["torch"], strict=True)),
                    "relative_distance": distances[name],
                }
                for name in ENGINES
            ]
    made_s = {name: seconds_of for name, (_, seconds_of) in made.items()}
    shown = {"model": MODEL, "axes": axes, "threads": threads, "turns": turns, "made_s": made_s, "full_steps": rows}
    return describe() | shown


def _made(name: str, family: Family, cache: Path, threads: int) -> tuple[Engine, float]:
    """An engine, and the seconds that it took to build and load it."""
    began = time.perf_counter()
    return make_engine(name, family, cache, threads), time.perf_counter() - began


def _print(result: dict[str, Any]) -> None:
    show(
        f"a full step of {result['model']} on {result['threads']} threads, medians of {result['turns']} turns",
        ("batch", "engine", "ms", "of torch", "distance", "made in"),
        [
            (
                str(row["batch"]),
                row["engine"],
                f"{row['ms']:.2f}",
                f"{row['of_torch']:.2f}",
                f"{row['relative_distance']:.1e}",
                f"{result['made_s'][row['engine']]:.1f} s",
            )
            for row in result["full_steps"]
        ],
        numbers=True,
    )


if __name__ == "__main__":
    main()
