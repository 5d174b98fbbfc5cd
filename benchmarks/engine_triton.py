"""What engine triton costs over the engine in the pipeline's own process: the emoji model, both through Triton.

Two servers are up, and one at a time gets requests: `model_repository`, whose full steps run ONNX Runtime in process,
and `examples/engine_triton`, whose full steps are calls of another model that runs the same ONNX file. They take turns,
so that drift in the machine's speed affects both alike. Medians over the same turns are compared.
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.environment import RESULTS, ROOT, describe
from benchmarks.harness import (
    MODEL,
    PROMPT,
    check_least,
    config_of,
    embedded_server,
    parser_of,
    say,
    show,
    write,
)
from plugin.ops.server import Server
from plugin.repository import read_parameters
from triton_taylorseer_client import Client, Generation

REPOSITORIES = {"in_process": ROOT / "model_repository", "engine_triton": ROOT / "examples" / "engine_triton"}
CLIENTS = (1, 2, 4, 8)
CACHES: dict[str, dict[str, Any]] = {"off": {"cache_interval": 1}, "on": {}}  # on: the model's own settings


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes the result as JSON."""
    parser = parser_of("engine_triton", __doc__)
    parser.add_argument("--turns", type=int, default=15, help="times that each way is measured")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS / "engine_triton.json")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1)
    result = measure(arguments.turns, arguments.steps)
    write(arguments.output, result)
    _print(result, arguments.output)


def measure(turns: int, num_steps: int) -> dict[str, Any]:
    """All figures of one run; each a median over `turns` turns."""
    with ExitStack() as stack:
        ways = {}
        for name, repository in REPOSITORIES.items():
            ways[name] = _Way(stack.enter_context(embedded_server(repository=repository)), num_steps)
            stack.callback(ways[name].close)
        pictures = [way.warm_up() for way in ways.values()]
        for turn in track(range(turns), "turns"):
            for cache, clients in product(CACHES, CLIENTS):
                for name in sorted(ways, reverse=bool(turn % 2)):  # each goes first every other turn
                    ways[name].run(cache, clients)
    figures = {name: way.figures() for name, way in ways.items()}
    return describe() | {
        "turns": turns,
        "settings": _settings(num_steps),
        "pictures_alone_equal": bool(np.array_equal(*pictures)),
        "ways": figures,
        "engine_triton_over_in_process": _ratios(figures),
        "all": {name: way.samples() for name, way in ways.items()},
    }


class _Way:
    """One server and what has been measured on it."""

    def __init__(self, server: Server, num_steps: int) -> None:
        self._server = server
        self._num_steps = num_steps
        self._clients = [Client(server.grpc_url, MODEL) for _ in range(max(CLIENTS))]
        self._pictures_per_s: dict[tuple[str, int], list[float]] = {}
        self._full_step_s: dict[tuple[str, int], list[float]] = {}
        self._batch: dict[tuple[str, int], list[float]] = {}

    def warm_up(self) -> Any:
        """The picture of a request that is alone, after requests of all clients that fill allocators and caches."""
        self._make(max(CLIENTS), {})
        self._make(max(CLIENTS), CACHES["off"])
        return self._make(1, {})[0].image

    def run(self, cache: str, clients: int) -> None:
        """One turn: a picture for each client, all at once."""
        before = self._calls()
        began = time.perf_counter()
        made = self._make(clients, CACHES[cache])
        seconds = time.perf_counter() - began
        after = self._calls()
        key = (cache, clients)
        self._pictures_per_s.setdefault(key, []).append(clients / seconds)
        if cache == "off":  # every step is full
            steps = [each.report["denoise_s"] / self._num_steps for each in made]
            self._full_step_s.setdefault(key, []).append(median(steps))
        if after is not None and before is not None:
            requests, executions = (new - old for new, old in zip(after, before, strict=True))
            self._batch.setdefault(key, []).append(requests / executions)

    def figures(self) -> dict[str, Any]:
        """The medians, by cache and number of clients."""
        return {name: {key: median(each) for key, each in samples.items()} for name, samples in self.samples().items()}

    def samples(self) -> dict[str, dict[str, list[float]]]:
        """All that was measured: a number for each turn."""
        named = {
            "pictures_per_s": self._pictures_per_s,
            "full_step_s": self._full_step_s,
            "requests_per_execution": self._batch,
        }
        return {
            name: {f"cache_{cache}_clients_{clients}": each for (cache, clients), each in samples.items()}
            for name, samples in named.items()
            if samples
        }

    def close(self) -> None:
        """Closes the connections."""
        for client in self._clients:
            client.close()

    def _make(self, clients: int, fields: dict[str, Any]) -> list[Generation]:
        def one(index: int) -> Generation:
            return self._clients[index].generate(PROMPT, seed=index, num_inference_steps=self._num_steps, **fields)

        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(one, range(clients)))

    def _calls(self) -> tuple[float, float] | None:
        """Requests and executions of the called model so far; None where there is none."""
        with urllib.request.urlopen(self._server.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        names = ("nv_inference_request_success", "nv_inference_exec_count")
        found = [re.search(rf'^{name}\{{model="emoji_blocks".*\}} (\S+)$', text, re.MULTILINE) for name in names]
        requests, executions = (float(each[1]) if each else None for each in found)
        return None if requests is None or executions is None else (requests, executions)


def _ratios(figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    ours, theirs = figures["engine_triton"], figures["in_process"]
    return {name: {key: ours[name][key] / theirs[name][key] for key in theirs[name]} for name in theirs}


def _settings(num_steps: int) -> dict[str, Any]:
    config = config_of(MODEL, REPOSITORIES["engine_triton"])
    blocks = REPOSITORIES["engine_triton"] / "emoji_blocks" / "config.pbtxt"
    text = blocks.read_text(encoding="utf-8")
    cache, called = config.defaults.cache, config.engine_model
    delay = re.search(r"max_queue_delay_microseconds: (\d+)", text)
    return {
        "model": MODEL,
        "called_model": {
            "name": called.name if called else None,
            "engine": read_parameters(text)["engine"],
            "max_batch_size": called.max_batch_size if called else None,
            "max_queue_delay_us": int(delay[1]) if delay else 0,
        },
        "num_steps": num_steps,
        "full_steps": {"off": num_steps, "on": len(cache.full_steps(num_steps))},
        "height": config.defaults.height,
        "width": config.defaults.width,
        "dtype": config.source.dtype,
        "torch_threads": config.torch_threads or "all",
        "engine_threads": config.engine_threads or "all",
        "interval": cache.interval,
        "order": cache.order,
        "warmup_steps": cache.warmup_steps,
    }


def _print(result: dict[str, Any], path: Path) -> None:
    steps, turns = result["settings"]["num_steps"], result["turns"]
    title = f"{MODEL}, {steps} steps, cache off and on, medians of {turns} turns"
    show(title, ("figure", "in process", "engine triton", "ratio", "batch"), _rows(result), numbers=True)
    same = "equal" if result["pictures_alone_equal"] else "different"
    say(f"a request alone gets {same} bytes both ways; written to {path}")


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ways, ratios = result["ways"], result["engine_triton_over_in_process"]
    for name, unit, scale in (("full_step_s", "ms/full step", 1e3), ("pictures_per_s", "pictures/s", 1.0)):
        for key, ratio in ratios[name].items():
            both = (f"{ways[way][name][key] * scale:.2f}" for way in REPOSITORIES)
            batch = ways["engine_triton"]["requests_per_execution"].get(key)
            _, cache, _, clients = key.split("_")
            yield f"{unit}, {cache}, {clients} clients", *both, f"{ratio:.2f}", f"{batch:.2f}"


if __name__ == "__main__":
    main()
