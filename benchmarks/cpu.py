"""Time per picture on the CPU: the embedded model with the cache off and on, in process and through a real Triton.

The ways are interleaved, one picture at a time, so that drift in the machine's speed affects all of them alike. Medians
over the same turns are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import (
    MODEL,
    PROMPT,
    check_least,
    config_of,
    embedded_server,
    parser_of,
    say,
    show,
    take_turns,
    use_threads_of,
    warm_up,
    write,
)
from benchmarks.peers import Peer, cached_by_cache_dit, hook, plain
from plugin.config import ModelConfig
from plugin.denoising.events import NoEvents
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.ops.server import ServerError
from taylorseer import StepKind
from triton_taylorseer_client import Client


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
    parser = parser_of("cpu", __doc__)
    parser.add_argument("--pictures", type=int, default=20, help="turns; each makes one picture in every way")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu.json")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, pictures=1)
    try:
        result = measure(arguments.pictures, arguments.steps)
    except ServerError as error:
        raise SystemExit(f"error: {error}") from None
    write(arguments.output, result)
    _print(result, arguments.output)


def measure(pictures: int, num_steps: int) -> dict[str, Any]:
    """All figures of one run; seconds, each a median over `pictures` turns."""
    config = config_of(MODEL)
    use_threads_of(config)
    host = PipelineHost(
        load_pipeline(config.source),
        config.engine,
        engine_threads=config.engine_threads or None,
        text_cache_bytes=config.text_cache_mib * 2**20,
    )
    settings = replace(config.defaults, prompt=PROMPT, seed=1, num_inference_steps=num_steps)
    off = replace(settings, cache=replace(settings.cache, interval=1))
    steps = {"off": StepTimes(), "on": StepTimes()}
    full_steps = len(settings.cache.full_steps(num_steps))
    peers = _peers(config, num_steps, full_steps)

    def in_process(request: Any, times: StepTimes | None = None) -> Callable[[], object]:
        return lambda: generate(host, request, times, max_sequence_length=config.max_sequence_length)

    def beside(peer: Peer) -> Callable[[], object]:
        return lambda: peer.picture(PROMPT, 1)

    with embedded_server() as server, Client(server.grpc_url, MODEL) as client:

        def through_triton(**fields: Any) -> Callable[[], object]:
            return lambda: client.generate(PROMPT, seed=1, num_inference_steps=num_steps, **fields)

        ways = {name: beside(peer) for name, peer in peers.items()} | {
            "in_process_off": in_process(off, steps["off"]),
            "in_process_on": in_process(settings, steps["on"]),
            "triton_off": through_triton(cache_interval=1),
            "triton_on": through_triton(),
        }
        warm_up(ways, 2)
        for times in steps.values():
            times.clear()
        seconds = take_turns(ways, pictures, shown_as="pictures")
    return (
        describe()
        | _figures(seconds, steps, num_steps, full_steps)
        | {
            "peers_full_steps": {name: peer.full_steps for name, peer in peers.items()},
            "settings": _settings(settings, config),
        }
    )


def _peers(config: ModelConfig, num_steps: int, full_steps: int) -> dict[str, Peer]:
    """The plain pipeline and other libraries' caches, by name."""
    by_interval = config.presets["default"]
    return {
        "diffusers": plain(config, num_steps),
        "diffusers_fewer_steps": plain(config, full_steps),
        "diffusers_hook": hook(config, by_interval, num_steps),
        "diffusers_hook_lite": hook(config, by_interval, num_steps, lite=True),
        "cache_dit": cached_by_cache_dit(config, by_interval, num_steps),
    }


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
    steps = result["steps"]
    title = f"{MODEL}, {steps['num_steps']} steps, {steps['full_steps']} full with cache"
    show(title, ("figure", "value", "target"), _rows(result), numbers=True)
    say(f"written to {path}")


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    full = result["peers_full_steps"]
    for name, value in result["picture_s"].items():
        steps = f", {full[name]} full" if name in full else ""
        yield f"picture, {name.replace('_', ' ')}{steps}", f"{value * 1e3:.1f} ms", ""
    yield "full step", f"{result['full_step_s'] * 1e3:.2f} ms", ""
    yield "forecast step", f"{result['forecast_step_s'] * 1e3:.2f} ms", ""
    yield "forecast step / full step", f"{result['forecast_step_over_full_step']:.3f}", "<= 0.12"
    possible = result["possible_speed_up"]
    for way, value in result["speed_up"].items():
        share = result["speed_up_over_possible"][way]
        yield f"speed-up, {way.replace('_', ' ')}", f"{value:.2f} = {share:.2f} of {possible:.2f}", ">= 0.85"
    for way, value in result["triton_overhead_s"].items():
        allowed = result["triton_overhead_allowed_s"][way]
        yield f"Triton adds, cache {way}", f"{value * 1e3:.1f} ms", f"<= {allowed * 1e3:.1f} ms"


if __name__ == "__main__":
    main()
