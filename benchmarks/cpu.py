"""Time per picture on the CPU: the embedded model with the cache off and on, in process and through a real Triton.

All ways take turns, picture by picture, so that a machine whose speed drifts slows each of them alike; what is compared
are medians over the same turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.environment import RESULTS, ROOT, describe
from benchmarks.peers import Peer, cached_by_cache_dit, hook, plain
from clients import Client
from plugin.config import ModelConfig
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.denoising.run import NoEvents
from plugin.ops.server import Server, ServerConfig, ServerError, free_ports
from taylorseer import StepKind

PROMPT = "red apple, 3d"
MODEL = "emoji"


class StepTimes(NoEvents):
    """Seconds of each step, by its kind."""

    def __init__(self) -> None:
        self.seconds: dict[StepKind, list[float]] = {kind: [] for kind in StepKind}

    def clear(self) -> None:
        """Forgets what has been measured."""
        for each in self.seconds.values():
            each.clear()

    def step_done(self, kind: StepKind, seconds: float) -> None:
        self.seconds[kind].append(seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes the result as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.cpu", description=__doc__)
    parser.add_argument("--pictures", type=int, default=20, help="turns; each makes one picture in every way")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu.json")
    arguments = parser.parse_args(argv)
    if arguments.pictures < 1:
        parser.error(f"--pictures is {arguments.pictures}, must be at least 1")
    try:
        result = measure(arguments.pictures, arguments.steps)
    except ServerError as error:
        raise SystemExit(f"error: {error}") from None
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(result, arguments.output)


def measure(pictures: int, num_steps: int) -> dict[str, Any]:
    """All figures of one run; seconds, each a median over `pictures` turns."""
    config = ModelConfig.from_folder(ROOT / "model_repository" / f"{MODEL}_stream")
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    host = PipelineHost(
        load_pipeline(config.source),
        config.engine,
        engine_threads=config.engine_threads or None,
        text_cache_bytes=config.text_cache_mib * 2**20,
    )
    settings = replace(config.defaults, prompt=PROMPT, seed=1, num_inference_steps=num_steps)
    off = replace(settings, cache=replace(settings.cache, interval=1))
    steps = {"off": StepTimes(), "on": StepTimes()}
    by_interval = config.presets["default"]
    full_steps = len(settings.cache.full_steps(num_steps))
    peers = {
        "diffusers": plain(config, num_steps),
        "diffusers_fewer_steps": plain(config, full_steps),
        "diffusers_hook": hook(config, by_interval, num_steps),
        "diffusers_hook_lite": hook(config, by_interval, num_steps, lite=True),
        "cache_dit": cached_by_cache_dit(config, by_interval, num_steps),
    }

    def in_process(request: Any, times: StepTimes | None = None) -> Callable[[], object]:
        return lambda: generate(host, request, times, max_sequence_length=config.max_sequence_length)

    def beside(peer: Peer) -> Callable[[], object]:
        return lambda: peer.picture(PROMPT, 1)

    http_port, grpc_port, metrics_port = free_ports(3)
    server_config = ServerConfig(
        ROOT / "model_repository", "127.0.0.1", http_port, grpc_port, metrics_port, models=(MODEL,)
    )
    with Server(server_config) as server, Client(server.grpc_url, MODEL) as client:

        def through_triton(**fields: int) -> Callable[[], object]:
            return lambda: client.generate(PROMPT, seed=1, num_inference_steps=num_steps, **fields)

        ways = {name: beside(peer) for name, peer in peers.items()} | {
            "in_process_off": in_process(off, steps["off"]),
            "in_process_on": in_process(settings, steps["on"]),
            "triton_off": through_triton(cache_interval=1),
            "triton_on": through_triton(),
        }
        for way in ways.values():  # the first pictures are slower: allocators and caches fill
            way()
            way()
        for times in steps.values():
            times.clear()
        seconds = _take_turns(ways, pictures)
    return (
        describe()
        | _figures(seconds, steps, num_steps, full_steps)
        | {
            "peers_full_steps": {name: peer.full_steps for name, peer in peers.items()},
            "settings": _settings(settings, config),
        }
    )


def _take_turns(ways: dict[str, Callable[[], object]], pictures: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in track(range(pictures), "pictures"):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def _figures(
    seconds: dict[str, list[float]], steps: dict[str, StepTimes], num_steps: int, full_steps: int
) -> dict[str, Any]:
    picture = {name: median(each) for name, each in seconds.items()}
    full = median(steps["on"].seconds[StepKind.FULL])
    forecast = median(steps["on"].seconds[StepKind.FORECAST])
    overhead = {way: median(_differences(seconds[f"triton_{way}"], seconds[f"in_process_{way}"])) for way in steps}
    possible = num_steps / full_steps
    speed_up = {way: picture[f"{way}_off"] / picture[f"{way}_on"] for way in ("in_process", "triton")}
    return {
        "steps": {"num_steps": num_steps, "full_steps": full_steps},
        "picture_s": picture,
        "picture_s_all": seconds,
        "full_step_s": full,
        "full_step_cache_off_s": median(steps["off"].seconds[StepKind.FULL]),
        "forecast_step_s": forecast,
        "forecast_step_over_full_step": forecast / full,
        "speed_up": speed_up,
        "possible_speed_up": possible,
        "speed_up_over_possible": {way: value / possible for way, value in speed_up.items()},
        "triton_overhead_s": overhead,
        "triton_overhead_allowed_s": {way: 0.03 * picture[f"in_process_{way}"] + 0.005 for way in steps},
    }


def _differences(first: list[float], second: list[float]) -> list[float]:
    return [one - other for one, other in zip(first, second, strict=True)]


def _settings(request: Any, config: ModelConfig) -> dict[str, Any]:
    cache = request.cache
    return {
        "model": MODEL,
        "engine": config.engine,
        "dtype": config.source.dtype,
        "torch_threads": config.torch_threads or "all",
        "engine_threads": config.engine_threads or "all",
        "height": request.height,
        "width": request.width,
        "guidance_scale": request.guidance_scale,
        "interval": cache.interval,
        "order": cache.order,
        "warmup_steps": cache.warmup_steps,
        "cooldown_steps": cache.cooldown_steps,
        "predictor": cache.predictor,
        "schedule": cache.schedule,
    }


def _print(result: dict[str, Any], path: Path) -> None:
    table = Table(
        title=f"{MODEL}, {result['steps']['num_steps']} steps, {result['steps']['full_steps']} full with cache"
    )
    for column in ("figure", "value", "target"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    full = result["peers_full_steps"]
    for name, value in result["picture_s"].items():
        steps = f", {full[name]} full" if name in full else ""
        table.add_row(f"picture, {name.replace('_', ' ')}{steps}", f"{value * 1e3:.1f} ms", "")
    table.add_row("full step", f"{result['full_step_s'] * 1e3:.2f} ms", "")
    table.add_row("forecast step", f"{result['forecast_step_s'] * 1e3:.2f} ms", "")
    table.add_row("forecast step / full step", f"{result['forecast_step_over_full_step']:.3f}", "<= 0.12")
    for way, value in result["speed_up"].items():
        share = result["speed_up_over_possible"][way]
        possible = result["possible_speed_up"]
        table.add_row(f"speed-up, {way.replace('_', ' ')}", f"{value:.2f} = {share:.2f} of {possible:.2f}", ">= 0.85")
    for way, value in result["triton_overhead_s"].items():
        allowed = result["triton_overhead_allowed_s"][way]
        table.add_row(f"Triton adds, cache {way}", f"{value * 1e3:.1f} ms", f"<= {allowed * 1e3:.1f} ms")
    Console().print(table, f"written to {path}", highlight=False)


if __name__ == "__main__":
    main()
