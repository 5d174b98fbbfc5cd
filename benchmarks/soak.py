"""Mixed traffic for minutes: whether memory comes back and nothing is left behind, and latencies under overload.

The first part is a closed loop of mixed requests: a third are cancelled at some step, and some are invalid. The second
sends requests at random times, three times as many as the server served in the first part.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import tritonclient.grpc.aio as aio
from rich.console import Console
from tritonclient.grpc import InferInput

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import MODEL, embedded_server, parser_of, say, write
from plugin.ops.server import Server
from triton_taylorseer_client import Client, GenerationError, InvalidArgument
from triton_taylorseer_client.messages import channel_arguments

CLIENTS = 12
PROMPTS = ("red apple, 3d", "blue car, flat", "cat face, 3d", "cactus, flat", "pizza, 3d")
SIZES = ((64, 64), (48, 80), (80, 48), (32, 32), (40, 96))
OVERLOAD = 3.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both parts, prints the figures, writes them as JSON, and returns 1 if something was left behind."""
    parser = parser_of("soak", __doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of both parts together")
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    arguments = parser.parse_args(argv)
    if arguments.minutes <= 0:
        parser.error(f"--minutes is {arguments.minutes}, must be above 0")
    with embedded_server() as server:
        result = describe() | {"model": MODEL, "minutes": arguments.minutes, **soak(server, 60 * arguments.minutes)}
    write(arguments.output, result)
    Console().print_json(data={name: result[name] for name in ("mixed", "overload", "left_behind")})
    say(f"wrote {arguments.output}")
    return 1 if any(result["left_behind"].values()) else 0


def soak(server: Server, seconds: float) -> dict[str, Any]:
    """Both parts against a running server."""
    worker = _worker(server)
    _mixed(server, 0.2 * seconds, seed=0)  # allocators and the engine's arenas see every shape
    before = _resources(server, worker)
    mixed = _mixed(server, 0.5 * seconds, seed=1)
    after = _resources(server, worker)
    drift = after["resident_bytes"] / before["resident_bytes"] - 1
    overload = _overload(server, 0.3 * seconds, OVERLOAD * mixed["finished_per_s"])
    end = _resources(server, worker)
    return {
        "mixed": mixed | {"resident_drift": drift, "before": before, "after": after},
        "overload": overload,
        "left_behind": {
            "cache_bytes": end["cache_bytes"],
            "requests_in_flight": end["requests_in_flight"],
            "threads": max(0, end["threads"] - before["threads"]),
            "memory": int(drift > 0.02),
        },
    }


def _mixed(server: Server, seconds: float, seed: int) -> dict[str, Any]:
    """A closed loop of mixed requests; how they ended."""
    end = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()

    def client(number: int) -> None:
        chance = random.Random(1000 * seed + number)
        with Client(server.grpc_url, MODEL) as connection:
            while time.monotonic() < end:
                outcomes[_one(connection, chance)] += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    return {"outcomes": dict(outcomes), "finished_per_s": outcomes["ok"] / seconds, "clients": CLIENTS}


def _one(connection: Client, chance: random.Random) -> str:
    height, width = chance.choice(SIZES)
    fields: dict[str, Any] = {
        "seed": chance.randrange(10**6),
        "height": height,
        "width": width,
        "num_inference_steps": chance.randint(5, 50),
        "cache_interval": chance.choice((1, 3, 5, 5, 5)),
        "cache_order": chance.randint(0, 2) if chance.random() > 0.05 else 99,
    }
    updates = connection.stream(chance.choice(PROMPTS), **fields)
    try:
        if chance.random() < 1 / 3:
            for _ in range(chance.randint(0, 5)):
                next(updates, None)
            return "cancelled"
        for _ in updates:
            pass
        return "ok"
    except InvalidArgument:
        return "invalid"
    except GenerationError as error:
        return type(error).__name__
    finally:
        updates.close()


def _overload(server: Server, seconds: float, rate: float) -> dict[str, Any]:
    """Requests at random times (Poisson); latencies of those that are served, and how fast the others are refused."""
    chance = random.Random(7)
    outcomes: dict[str, list[float]] = {"served": [], "refused": []}
    failed: list[str] = []
    # Streams, because plain calls would wait in the plain model. One thread sends all: the work of many would be in the
    # figures.

    async def one(client: aio.InferenceServerClient, number: int) -> None:
        began = time.monotonic()
        # Without the header that keeps error codes: this server (24.10) can crash where a stream ends with one.
        errors = [str(error) async for _, error in client.stream_infer(_requests(number)) if error is not None]
        refused = any("requests are in flight" in error for error in errors)
        outcomes["refused" if refused else "served"].append(time.monotonic() - began)
        failed.extend([] if refused else errors)

    async def offer() -> int:
        async with aio.InferenceServerClient(
            server.grpc_url, channel_args=channel_arguments(server.grpc_url)
        ) as client:
            running: list[asyncio.Task[None]] = []
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                running.append(asyncio.create_task(one(client, len(running))))
                await asyncio.sleep(chance.expovariate(rate))
            await asyncio.gather(*running)
            return len(running)

    offered = asyncio.run(offer())
    return {
        "offered_per_s": offered / seconds,
        "served": len(outcomes["served"]),
        "refused": len(outcomes["refused"]),
        "failed": failed,
        "latency_s": _percentiles(outcomes["served"]),
        "refused_within_s": _percentiles(outcomes["refused"]),
    }


async def _requests(number: int) -> AsyncIterator[dict[str, Any]]:
    """The one request of a stream."""
    prompt, seed = InferInput("prompt", [1], "BYTES"), InferInput("seed", [1], "INT64")
    prompt.set_data_from_numpy(np.array([PROMPTS[number % len(PROMPTS)].encode()], dtype=np.object_))
    seed.set_data_from_numpy(np.array([number]))
    yield {"model_name": f"{MODEL}_stream", "inputs": [prompt, seed]}


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{each}": float(np.percentile(seconds, each)) for each in (50, 95, 99)} if seconds else {}


def _worker(server: Server) -> psutil.Process:
    """The process of the model that owns the pipeline."""
    assert server.process is not None
    return next(
        each
        for each in psutil.Process(server.process.pid).children(recursive=True)
        if "stub" in each.name() and any(f"{MODEL}_stream" in part for part in each.cmdline())
    )


def _resources(server: Server, worker: psutil.Process) -> dict[str, int]:
    """What the worker holds, once nothing is in flight."""
    deadline = time.monotonic() + 60
    while True:
        with urlopen(server.metrics_url, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        of_model = [line for line in lines if line.startswith("taylorseer_") and f'model="{MODEL}"' in line]
        values = {line.split("{")[0]: int(float(line.split()[-1])) for line in of_model}
        busy = values["taylorseer_requests_in_flight"] or values["taylorseer_requests_waiting"]
        if not busy or time.monotonic() > deadline:
            return {
                "resident_bytes": worker.memory_info().rss,
                "threads": worker.num_threads(),
                "cache_bytes": values["taylorseer_cache_bytes"],
                "requests_in_flight": values["taylorseer_requests_in_flight"],
            }
        time.sleep(0.2)


if __name__ == "__main__":
    raise SystemExit(main())
