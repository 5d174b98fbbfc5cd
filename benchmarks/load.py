"""perf_analyzer and AIPerf against a real server of the embedded model: closed loops, and requests at random times.

Closed loops of 1, 2, 4 and 8 clients go through the gRPC stream, through plain calls over gRPC and HTTP, and, from
AIPerf, to /generate. Then requests arrive at the stream at random times (Poisson), at shares of the best rate that its
closed loop has shown, which gives latency against load.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.environment import RESULTS, ROOT, describe
from benchmarks.harness import MODEL, config_of, embedded_server, parser_of, say, show, write
from benchmarks.load_generators import (
    AIPERF,
    PERF_ANALYZER,
    WINDOWS,
    Arrivals,
    Concurrency,
    LoadError,
    Target,
    aiperf_command,
    find,
    install,
    perf_analyzer_command,
    poisson_intervals,
    read_aiperf,
    read_perf_analyzer,
    run,
)
from benchmarks.serving import CLIENTS, SIZES, closed_loop, engine_calls
from plugin.ops.server import Server
from plugin.serving.plan import example_request
from triton_taylorseer_client import Client

TOOLS = {"perf_analyzer": PERF_ANALYZER, "aiperf": AIPERF}
SHARES = (0.3, 0.6, 0.8, 0.95, 1.2)  # of the best closed loop's rate
POISSON_WINDOWS = 3  # times as long as a closed loop's: random arrivals scatter more
REQUESTS = ROOT / "benchmarks" / "requests.json"  # perf_analyzer's form
PROMPTS = ROOT / "benchmarks" / "requests.jsonl"  # AIPerf's
TOKENIZER = ROOT / "model_repository" / MODEL / "1" / "pipeline" / "tokenizer"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes the result as JSON and a plot; ends with code 2 if a tool is missing."""
    parser = parser_of("load", __doc__)
    parser.add_argument("--tool", action="append", choices=TOOLS, help="repeatable; default both")
    parser.add_argument("--perf-analyzer", type=Path, help="its path; default PATH, then what --install has installed")
    parser.add_argument("--aiperf", type=Path, help="its path; default PATH, then what --install has installed")
    parser.add_argument("--install", action="store_true", help="install the tools into the cache folder, and end")
    parser.add_argument("--window-s", type=float, default=3.0, help=f"each closed loop takes {WINDOWS} such windows")
    parser.add_argument("--output", type=Path, default=RESULTS / "load.json")
    parser.add_argument("--plot-only", action="store_true", help="draw what --output holds; measure nothing")
    arguments = parser.parse_args(argv)
    if arguments.window_s <= 0:
        parser.error(f"--window-s is {arguments.window_s:g}, must be above 0")
    tools = arguments.tool or list(TOOLS)
    try:
        if arguments.install:
            for name in tools:
                say(f"{install(name)}")
            return 0
        if not arguments.plot_only:
            binaries = {name: find(name, getattr(arguments, name)) for name in tools}
            write(arguments.output, measure(binaries, arguments.window_s))
    except LoadError as error:
        parser.error(str(error))
    result = json.loads(arguments.output.read_text(encoding="utf-8"))
    plots.draw_load(result, arguments.output.with_suffix(".png"))
    _print(result, arguments.output)
    return 0


def measure(binaries: dict[str, Path], window_s: float) -> dict[str, Any]:
    """Everything that the tools in `binaries`, by name, can measure; prints each point as it comes.

    Raises:
        LoadError: a tool failed in a closed loop.
    """
    request = example_request(config_of(MODEL))
    load_average, began = os.getloadavg()[0], time.monotonic()
    with embedded_server() as server:
        with ExitStack() as stack:
            connections = [stack.enter_context(Client(server.grpc_url, MODEL)) for _ in range(CLIENTS[-1])]
            closed_loop(connections, range(2 * len(connections)), SIZES[:1])  # allocators and caches fill
        closed = _closed_loops(binaries, server, window_s)
        poisson = {}
        if "perf_analyzer" in binaries:
            capacity = max(point["requests_per_s"] for point in closed["stream"])
            points = _poisson(binaries["perf_analyzer"], server, capacity, POISSON_WINDOWS * window_s)
            poisson = {"capacity_per_s": capacity, "poisson": points}
    return describe() | {
        "model": MODEL,
        "tools": {name: TOOLS[name] for name in binaries},
        "steps": {
            "num_steps": request.num_inference_steps,
            "full_steps": len(request.cache.full_steps(request.num_inference_steps)),
        },
        "size": [request.height, request.width],
        "window_s": window_s,
        "load_average_before": load_average,
        "load_average_after": os.getloadavg()[0],
        "took_s": time.monotonic() - began,
        "closed_loop": closed,
        **poisson,
    }


def _closed_loops(binaries: dict[str, Path], server: Server, window_s: float) -> dict[str, list[dict[str, Any]]]:
    """The points of each target; targets take turns, so that drift in the machine's speed affects them alike."""
    measured: dict[str, list[dict[str, Any]]] = {}
    for clients in CLIENTS:
        ways: dict[str, Callable[[Path], dict[str, Any]]] = {}
        if "perf_analyzer" in binaries:
            for name, target in _targets(server).items():
                ways[name] = _perf_analyzer(binaries["perf_analyzer"], target, Concurrency(clients), window_s)
        if "aiperf" in binaries:
            ways["aiperf"] = _aiperf(binaries["aiperf"], server.http_url, clients, WINDOWS * window_s)
        for name, way in ways.items():
            point = {"concurrency": clients, **_measured(way, server)}
            say(f"{name}, {clients} clients: {_brief(point)}")
            measured.setdefault(name, []).append(point)
    return measured


def _poisson(binary: Path, server: Server, capacity: float, window_s: float) -> list[dict[str, Any]]:
    """Latencies of the stream at shares of the capacity; if a request was refused, perf_analyzer has no figures."""
    points = []
    for share in SHARES:
        point: dict[str, Any] = {"share_of_capacity": share, "asked_per_s": share * capacity}
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.writelines(f"{each}\n" for each in poisson_intervals(share * capacity, 1.25 * WINDOWS * window_s))
            file.flush()
            arrivals = Arrivals(Path(file.name))
            try:
                point |= _measured(_perf_analyzer(binary, _targets(server)["stream"], arrivals, window_s), server)
            except LoadError as error:
                point["failed"] = str(error)
        say(f"Poisson, {share:.0%} of {capacity:.2f}/s: {_brief(point)}")
        points.append(point)
    return points


def _targets(server: Server) -> dict[str, Target]:
    return {
        "stream": Target(f"{MODEL}_stream", "grpc", server.grpc_url, streaming=True),
        "plain_grpc": Target(MODEL, "grpc", server.grpc_url),
        "plain_http": Target(MODEL, "http", server.http_url),
    }


def _perf_analyzer(
    binary: Path, target: Target, load: Concurrency | Arrivals, window_s: float
) -> Callable[[Path], dict[str, Any]]:
    def way(folder: Path) -> dict[str, Any]:
        command = perf_analyzer_command(binary, target, load, window_s, REQUESTS, folder)
        cpu_s = run(command, folder / "log", 60 + 10 * WINDOWS * window_s)
        return read_perf_analyzer(folder) | {"generator_cpu_s": cpu_s}

    return way


def _aiperf(binary: Path, http_url: str, clients: int, seconds: float) -> Callable[[Path], dict[str, Any]]:
    def way(folder: Path) -> dict[str, Any]:
        command = aiperf_command(binary, http_url, MODEL, clients, seconds, PROMPTS, TOKENIZER, folder)
        cpu_s = run(command, folder / "log", 120 + 10 * seconds)
        return read_aiperf(folder) | {"generator_cpu_s": cpu_s}

    return way


def _measured(way: Callable[[Path], dict[str, Any]], server: Server) -> dict[str, Any]:
    """The figures of one way, and how many requests shared an engine call meanwhile, from our own metrics."""
    calls, requests = engine_calls(server.metrics_url)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        point = way(Path(folder))
    point["generator_cores"] = point.pop("generator_cpu_s") / (time.monotonic() - began)
    calls_after, requests_after = engine_calls(server.metrics_url)
    return point | {"requests_per_engine_call": (requests_after - requests) / (calls_after - calls)}


def _brief(point: dict[str, Any]) -> str:
    if "failed" in point:
        return str(point["failed"])
    return f"{point['requests_per_s']:.2f}/s, p50 {point['p50_s']:.2f} s, p99 {point['p99_s']:.2f} s"


def _print(result: dict[str, Any], path: Path) -> None:
    points = [
        (f"{name.replace('_', ' ')}, {point['concurrency']} clients", point)
        for name, of_target in result["closed_loop"].items()
        for point in of_target
    ]
    points += [
        (f"Poisson, {point.get('offered_per_s', point['asked_per_s']):.2f}/s", point)
        for point in result.get("poisson", [])
    ]
    rows = [(name, *([point["failed"]] if "failed" in point else _cells(point))) for name, point in points]
    steps = result["steps"]
    title = f"{result['model']}, {steps['num_steps']} steps, {steps['full_steps']} full"
    show(title, ("load", "requests/s", "p50", "p95", "p99", "a call", "generator"), rows)
    say("a call: requests of one engine call; generator: processor cores that the load generator took")
    say(f"took {result['took_s']:.0f} s, load average before {result['load_average_before']:.1f}")
    say(f"wrote {path}")


def _cells(point: dict[str, Any]) -> list[str]:
    return [
        f"{point['requests_per_s']:.2f}",
        *(f"{point[f'p{each}_s']:.3f} s" for each in (50, 95, 99)),
        f"{point['requests_per_engine_call']:.2f}",
        f"{point['generator_cores']:.2f}",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
