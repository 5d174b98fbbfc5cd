"""Requests per second of the embedded model with many clients: full steps packed, one request at a time, and diffusers.

Closed loops of 1, 2, 4 and 8 clients against two real servers that differ only in packing: `packed` is the model as
shipped, `one_at_a_time` serves one request after another with the same cache settings. Beside them diffusers with its
own TaylorSeer hook makes one picture after another in process, with as many full steps. All take turns within one run,
every other turn in the reverse order: a measurement that follows diffusers' torch threads or a long rest is a little
slower. A single client goes to the other server after each picture, since the difference between the servers is then
smaller than the machine's drift within a few seconds.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from rich.progress import track

from benchmarks import plots
from benchmarks.environment import RESULTS, describe
from benchmarks.harness import MODEL, check_least, config_of, embedded_server, parser_of, say, show, write
from benchmarks.peers import Peer, hook
from plugin.serving.plan import example_request
from triton_taylorseer_client import Client

PROMPTS = (
    "red apple, 3d",
    "blue car, flat",
    "cat face, 3d",
    "cactus, flat",
    "pizza, 3d",
    "rocket, flat",
    "tree, 3d",
    "star",
)
CLIENTS = (1, 2, 4, 8)
SIZES = ((64, 64), (48, 80), (80, 48), (64, 64))  # of mixed traffic: three kinds that cannot share calls
CASES = [
    (traffic, clients, sizes)
    for traffic, sizes in (("same_size", SIZES[:1]), ("mixed_sizes", SIZES))
    for clients in (CLIENTS if traffic == "same_size" else CLIENTS[-1:])
]
ONE_AT_A_TIME = {"max_in_flight": "1", "max_batch": "1"}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes the result as JSON, and a plot beside it."""
    parser = parser_of("serving", __doc__)
    parser.add_argument("--turns", type=int, default=12, help="of every way and number of clients")
    parser.add_argument("--pictures", type=int, default=24, help="in each turn, shared by the clients")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.json")
    parser.add_argument("--plot-only", action="store_true", help="draw what --output holds; measure nothing")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1, pictures=1)
    if arguments.plot_only:
        result = json.loads(arguments.output.read_text(encoding="utf-8"))
    else:
        result = measure(arguments.turns, arguments.pictures)
        write(arguments.output, result)
    plots.draw_serving(result, arguments.output.with_suffix(".png"))
    _print(result, arguments.output)


def measure(turns: int, pictures: int) -> dict[str, Any]:
    """Pictures per second of every way and number of clients, each a median over turns, and their ratios in a turn."""
    config = config_of(MODEL)
    request = example_request(config)
    full_steps = len(request.cache.full_steps(request.num_inference_steps))
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        servers = {
            "packed": stack.enter_context(embedded_server()),
            "one_at_a_time": stack.enter_context(embedded_server(ONE_AT_A_TIME)),
        }
        loops: list[Callable[[], dict[str, float]]] = []
        for traffic, clients, sizes in CASES:
            connections = {
                f"{way}, {traffic}, {clients}": [
                    stack.enter_context(Client(server.grpc_url, MODEL)) for _ in range(clients)
                ]
                for way, server in servers.items()
            }
            loops.append(partial(in_turns, connections, pictures, sizes))
        diffusers = hook(config, config.presets["default"], request.num_inference_steps)
        loops.append(partial(one_after_another, diffusers, min(pictures, 4)))
        for loop in loops:  # not measured: the first loops are slower, as they fill allocators and caches
            loop()
        for turn in track(range(turns), "turns"):
            for loop in loops[:: -1 if turn % 2 else 1]:
                for name, rate in loop().items():
                    rates.setdefault(name, []).append(rate)
        calls = {way: engine_calls(server.metrics_url) for way, server in servers.items()}
    return describe() | {
        "model": MODEL,
        "steps": {"num_steps": request.num_inference_steps, "full_steps": full_steps},
        "size": [request.height, request.width],
        "pictures_per_turn": pictures,
        "pictures_per_s": {name: median(each) for name, each in rates.items()},
        "pictures_per_s_all": rates,
        "diffusers_full_steps": diffusers.full_steps,
        "packed_over_one_at_a_time": {
            f"{traffic}, {clients}": _ratio(
                rates, f"packed, {traffic}, {clients}", f"one_at_a_time, {traffic}, {clients}"
            )
            for traffic, clients, _ in CASES
        },
        "packed_over_diffusers": _ratio(rates, f"packed, same_size, {CLIENTS[-1]}", "diffusers"),
        "requests_per_engine_call": {way: requests / count for way, (count, requests) in calls.items()},
    }


def _ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """The median of the ratios within each turn, so that drift in the machine's speed does not matter."""
    return median(a / b for a, b in zip(rates[one], rates[other], strict=True))


def in_turns(
    connections: Mapping[str, Sequence[Client]], pictures: int, sizes: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """Pictures per second through each list of connections, each for that number of pictures."""
    one_client = all(len(each) == 1 for each in connections.values())
    rounds = [range(i, i + 1) for i in range(pictures)] if one_client else [range(pictures)]
    seconds = dict.fromkeys(connections, 0.0)
    for number, indices in enumerate(rounds):
        for name in list(connections)[:: -1 if number % 2 else 1]:
            seconds[name] += closed_loop(connections[name], indices, sizes)
    return {name: pictures / taken for name, taken in seconds.items()}


def closed_loop(connections: Sequence[Client], indices: range, sizes: Sequence[tuple[int, int]]) -> float:
    """Seconds of some pictures; each client asks for its next one when it has the last."""
    errors: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            for i in indices[number :: len(connections)]:
                height, width = sizes[i % len(sizes)]
                connections[number].generate(PROMPTS[i % len(PROMPTS)], seed=i, height=height, width=width)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(connections))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - began


def one_after_another(peer: Peer, pictures: int) -> dict[str, float]:
    """Pictures per second of a peer."""
    began = time.perf_counter()
    for i in range(pictures):
        peer.picture(PROMPTS[i % len(PROMPTS)], i)
    return {"diffusers": pictures / (time.perf_counter() - began)}


def engine_calls(metrics_url: str) -> tuple[float, float]:
    """Engine calls since the server's start, and the requests in them, of all models and instances."""
    with urlopen(metrics_url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    count, total = (
        sum(float(line.split()[-1]) for line in lines if line.startswith(f"taylorseer_engine_batch_size_{part}"))
        for part in ("count", "sum")
    )
    return count, total


def _print(result: dict[str, Any], path: Path) -> None:
    steps = result["steps"]
    title = f"{MODEL}: pictures per second, {steps['num_steps']} steps, {steps['full_steps']} full"
    show(title, ("traffic, clients", "packed", "one at a time", "ratio", "target"), _rows(result))
    say(f"requests per engine call: {result['requests_per_engine_call']}")
    say(f"wrote {path}")


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    rates = result["pictures_per_s"]
    for name, ratio in result["packed_over_one_at_a_time"].items():
        both = (f"{rates[f'{way}, {name}']:.2f}" for way in ("packed", "one_at_a_time"))
        target = ">= 1.4" if name == f"same_size, {CLIENTS[-1]}" else ">= 0.98"
        yield name.replace("_", " "), *both, f"{ratio:.2f}", target
    full, ratio = result["diffusers_full_steps"], result["packed_over_diffusers"]
    yield f"diffusers, {full} full", "", f"{rates['diffusers']:.2f}", f"{ratio:.2f}", ">= 2"


if __name__ == "__main__":
    main()
