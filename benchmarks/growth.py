"""How the cost of a picture grows: time against tokens, steps, order and requests in flight, memory against `plan`.

    python -m benchmarks.growth

The embedded model in process, with the settings of its config.pbtxt. An exponent e says that the time grows as x ** e
over the points measured. All points of all curves take turns, so that drift in the machine's speed affects each of them
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import (
    MODEL,
    PROMPT,
    check_least,
    config_of,
    parser_of,
    say,
    show,
    take_turns,
    use_threads_of,
    warm_up,
    write,
)
from plugin.building.judge import offline_host
from plugin.denoising.generation import generate
from plugin.request import GenerationRequest
from plugin.serving.plan import architecture_of, example_request, plan_request

Point = tuple[int, GenerationRequest, int]  # the place on its axis, what is asked for, and how many of it at once

SIZES = (32, 48, 64, 96, 128)  # pixels of both sides
STEPS = (10, 20, 50, 100)
ORDERS = (0, 1, 2, 4, 8)
IN_FLIGHT = (1, 2, 4, 8)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes JSON and a plot."""
    parser = parser_of("growth", __doc__)
    parser.add_argument("--turns", type=int, default=7, help="of every point")
    parser.add_argument("--output", type=Path, default=RESULTS / "growth.json")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1)
    from benchmarks.plots import draw_growth  # needs matplotlib: a missing package is reported before measuring

    result = measure(arguments.turns)
    write(arguments.output, result)
    draw_growth(result, arguments.output.with_suffix(".png"))
    _print(result)
    say(f"wrote {arguments.output} and its plot")


def measure(turns: int) -> dict[str, Any]:
    """All curves: points, seconds (medians over the turns) and fitted exponents; and memory as held and as planned."""
    config = config_of(MODEL)
    use_threads_of(config)
    host = offline_host(config)
    architecture = architecture_of(config.source.pipeline)

    def request(**fields: Any) -> GenerationRequest:
        return example_request(config, prompt=PROMPT, seed=1, **fields)

    def planned(asked: GenerationRequest) -> Any:
        return plan_request(config, architecture, asked)

    def made(asked: GenerationRequest) -> Any:
        return generate(host, asked, max_sequence_length=config.max_sequence_length)

    def at_once(asked: GenerationRequest, count: int) -> None:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(made, [asked] * count))

    on, off = {"cache_interval": 5}, {"cache_interval": 1}
    curves: dict[str, list[Point]] = {}
    for cache, fields in (("on", on), ("off", off)):
        sizes = [request(height=size, width=size, **fields) for size in SIZES]
        curves[f"tokens, cache {cache}"] = [(planned(each).tokens, each, 1) for each in sizes]
        lengths = [request(num_inference_steps=steps, **fields) for steps in STEPS]
        curves[f"steps, cache {cache}"] = [(each.num_inference_steps, each, 1) for each in lengths]
    curves["order + 1"] = [(order + 1, request(cache_order=order, **on), 1) for order in ORDERS]
    curves["requests in flight"] = [(count, request(**on), count) for count in IN_FLIGHT]
    ways = {(name, x): partial(at_once, asked, count) for name, points in curves.items() for x, asked, count in points}
    warm_up(ways)
    seconds = take_turns(ways, turns, shown_as="turns")
    memory = []
    for asked in (request(height=size, width=size, cache_interval=5, cache_order=o) for size in SIZES for o in ORDERS):
        plan, report = planned(asked), made(asked).report
        memory.append(
            {"tokens": plan.tokens, "anchors": plan.anchors, "planned": plan.cache_bytes} | {"held": report.cache_bytes}
        )
    return describe() | {
        "model": MODEL,
        "engine": config.engine,
        "engine_lanes": config.engine_lanes,
        "turns": turns,
        "curves": {
            name: _curve([x for x, _, _ in points], [median(seconds[name, x]) for x, _, _ in points])
            for name, points in curves.items()
        },
        "memory": memory,
        "memory_as_planned": all(each["held"] == each["planned"] for each in memory),
    }


def _curve(x: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """The points with the exponent of the power law through them, by least squares of the logarithms."""
    exponent, _ = np.polyfit(np.log(x), np.log(seconds), 1)
    return {"x": list(x), "seconds": list(seconds), "exponent": float(exponent)}


def _print(result: dict[str, Any]) -> None:
    rows = []
    for name, curve in result["curves"].items():
        ends = [f"{curve['x'][i]:g}: {1e3 * curve['seconds'][i]:.0f} ms" for i in (0, -1)]
        rows.append((name, *ends, f"{curve['exponent']:.2f}"))
    show(f"{result['model']}: how a picture's time grows", ("against", "from", "to", "exponent"), rows)
    say(f"memory as planned at every point: {result['memory_as_planned']}")


if __name__ == "__main__":
    main()
