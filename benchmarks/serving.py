"""Requests per second of the embedded model with many clients: full steps packed, one request at a time, and diffusers.

Closed loops of 1, 2, 4 and 8 clients against two real servers that differ in nothing but packing: `packed` is the model
as shipped, `one_at_a_time` works on one request after another with the same cache settings. Beside them diffusers with
its own TaylorSeer hook, one picture after another in process, with as many full steps. All take turns within one run,
every other turn in the reverse order: who follows diffusers' torch threads or a long rest is a little slower. A client
alone goes from server to server with each picture: where so little is to be told apart, the seconds between two
measurements are too many on a machine whose speed drifts.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import plots
from benchmarks.environment import RESULTS, ROOT, describe
from benchmarks.peers import Peer, hook
from clients import Client
from plugin.config import ModelConfig
from plugin.ops.server import Server, ServerConfig, free_ports
from plugin.repository import variable
from plugin.serving.plan import example_request

MODEL = "emoji"
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
ONE_AT_A_TIME = {"max_in_flight": "1", "max_batch": "1"}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes the result as JSON, and a plot beside it."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("--turns", type=int, default=12, help="of every way and number of clients")
    parser.add_argument("--pictures", type=int, default=24, help="in each turn, shared by the clients")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.json")
    parser.add_argument("--plot-only", action="store_true", help="draw what --output holds; measure nothing")
    arguments = parser.parse_args(argv)
    for name in ("turns", "pictures"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}, must be at least 1")
    if arguments.plot_only:
        result = json.loads(arguments.output.read_text(encoding="utf-8"))
    else:
        result = measure(arguments.turns, arguments.pictures)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plots.draw_serving(result, arguments.output.with_suffix(".png"))
    _print(result, arguments.output)


def measure(turns: int, pictures: int) -> dict[str, Any]:
    """Pictures per second of every way and number of clients, each a median over turns, and their ratios in a turn."""
    config = ModelConfig.from_folder(ROOT / "model_repository" / f"{MODEL}_stream")
    request = example_request(config)
    full_steps = len(request.cache.full_steps(request.num_inference_steps))
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        servers = {
            "packed": stack.enter_context(embedded_server({})),
            "one_at_a_time": stack.enter_context(embedded_server(ONE_AT_A_TIME)),
        }
        cases = [
            (traffic, clients, sizes)
            for traffic, sizes in (("same_size", SIZES[:1]), ("mixed_sizes", SIZES))
            for clients in (CLIENTS if traffic == "same_size" else CLIENTS[-1:])
        ]
        loops: list[Callable[[], dict[str, float]]] = []
        for traffic, clients, sizes in cases:
            connections = {
                f"{way}, {traffic}, {clients}": [
                    stack.enter_context(Client(server.grpc_url, MODEL)) for _ in range(clients)
                ]
                for way, server in servers.items()
            }
            loops.append(partial(in_turns, connections, pictures, sizes))
        diffusers = hook(config, config.presets["default"], request.num_inference_steps)
        loops.append(partial(one_after_another, diffusers, min(pictures, 4)))
        for loop in loops:  # the first ones are slower: allocators and caches fill
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
            for traffic, clients, _ in cases
        },
        "packed_over_diffusers": _ratio(rates, f"packed, same_size, {CLIENTS[-1]}", "diffusers"),
        "requests_per_engine_call": {way: requests / count for way, (count, requests) in calls.items()},
    }


def _ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """The median of the ratios within each turn, so that a machine whose speed drifts does not decide."""
    return median(a / b for a, b in zip(rates[one], rates[other], strict=True))


@contextmanager
def embedded_server(parameters: dict[str, str]) -> Iterator[Server]:
    """A server of the embedded model, its parameters overridden by an environment that only it sees."""
    http_port, grpc_port, metrics_port = free_ports(3)
    environment = {variable(MODEL, name): value for name, value in parameters.items()}
    config = ServerConfig(ROOT / "model_repository", "127.0.0.1", http_port, grpc_port, metrics_port, models=(MODEL,))
    with ExitStack() as stack:
        os.environ.update(environment)
        try:
            server = stack.enter_context(Server(config))
        finally:
            for name in environment:
                del os.environ[name]
        yield server


def in_turns(
    connections: Mapping[str, Sequence[Client]], pictures: int, sizes: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """Pictures per second through each list of connections, of as many pictures each."""
    one_client = all(len(each) == 1 for each in connections.values())
    rounds = [range(i, i + 1) for i in range(pictures)] if one_client else [range(pictures)]
    seconds = dict.fromkeys(connections, 0.0)
    for number, indices in enumerate(rounds):
        for name in list(connections)[:: -1 if number % 2 else 1]:
            seconds[name] += closed_loop(connections[name], indices, sizes)
    return {name: pictures / taken for name, taken in seconds.items()}


def closed_loop(connections: Sequence[Client], indices: range, sizes: Sequence[tuple[int, int]]) -> float:
    """Seconds of some pictures where each client asks for its next one when it has the last."""
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
    rates, ratios = result["pictures_per_s"], result["packed_over_one_at_a_time"]
    steps = result["steps"]
    table = Table(title=f"{MODEL}: pictures per second, {steps['num_steps']} steps, {steps['full_steps']} full")
    for column in ("traffic, clients", "packed", "one at a time", "ratio", "target"):
        table.add_column(column)
    for name, ratio in ratios.items():
        target = ">= 1.4" if name == f"same_size, {CLIENTS[-1]}" else ">= 0.98"
        table.add_row(
            name.replace("_", " "),
            f"{rates[f'packed, {name}']:.2f}",
            f"{rates[f'one_at_a_time, {name}']:.2f}",
            f"{ratio:.2f}",
            target,
        )
    table.add_row(
        f"diffusers, {result['diffusers_full_steps']} full",
        "",
        f"{rates['diffusers']:.2f}",
        f"{result['packed_over_diffusers']:.2f}",
        ">= 2",
    )
    console = Console()
    console.print(table)
    console.print(f"requests per engine call: {result['requests_per_engine_call']}", highlight=False)
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
