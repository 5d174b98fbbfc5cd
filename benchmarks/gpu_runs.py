"""Whole runs of a published architecture with random weights: what cache and packing gain, and the memory they take.

Used by `benchmarks.gpu`, part "runs". Each case is written as soon as it is measured; a second call goes on with those
that are missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.environment import describe
from benchmarks.gpu_peers import peer_cases
from benchmarks.harness import config_of, say, show, synchronize, write
from benchmarks.random_models import dtype_of, random_pipeline, random_transformer
from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.denoising.transformer import StepObserver
from plugin.engines.base import Engine, EngineError
from plugin.engines.batch_limit import LARGEST, find_batch_limit
from plugin.engines.packer import PackSettings
from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.options import BuildOptions, SizeClass
from plugin.engines.tensorrt.package import PACKAGES
from plugin.families import family_of
from plugin.request import GenerationRequest
from plugin.serving.plan import architecture_of, axis_sizes, example_request
from plugin.serving.published import Architecture
from taylorseer import CacheConfig, StepKind

# What is measured besides the settings of each model's config.pbtxt, or in place of a model or size that is too large.
PIPELINES = {"wan2_1_t2v": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"}
SIZES: Mapping[str, Mapping[str, int]] = {"hunyuan_video": {"height": 544, "width": 960, "num_frames": 65}}
CACHES: Mapping[str, Mapping[str, CacheConfig]] = {
    "flux_dev": {f"N{n} O2": CacheConfig(interval=n, order=2, warmup_steps=3) for n in (4, 5, 6)}
}
BATCHES: Mapping[str, tuple[int, ...]] = {"dit_xl_2_256": (1, 32)}
IN_FLIGHT = (1, 2, 4, 8, 16)
PUBLISHED_SPEED_UP = {"flux_dev": 3.53, "hunyuan_video": 4.65, "hidream_full": 1 / (1 - 0.72)}


@dataclass
class _Steps(StepObserver):
    """Seconds of each step by its kind, the device's work included."""

    device: torch.device
    seconds: dict[StepKind, list[float]] = field(default_factory=lambda: {kind: [] for kind in StepKind})
    _began: float = 0.0
    _kind: StepKind | None = None

    def step_started(self, step: int, num_steps: int, latents: torch.Tensor) -> None:
        self.end()
        self._began = time.perf_counter()

    def step_computed(self, step: int, kind: StepKind) -> None:
        self._kind = kind

    def end(self) -> None:
        """The step in progress is over."""
        synchronize(self.device)
        if self._kind is not None:
            self.seconds[self._kind].append(time.perf_counter() - self._began)
        self._kind = None


@dataclass
class _Model:
    """A model with random weights, ready to run."""

    host: PipelineHost
    prompt: dict[str, Any]
    request: GenerationRequest
    axes: dict[str, int]
    device: torch.device

    def run(self, cache: CacheConfig, batch: int = 1, observer: StepObserver | None = None) -> Any:
        """One run in the calling thread; returns its cache's record."""
        pipe = self.host.pipeline_for(cache, observer)
        self.call(pipe, self.request.num_inference_steps, batch)
        return pipe.transformer.session

    def call(self, pipe: Any, num_steps: int, batch: int = 1) -> None:
        """One run of a pipeline, until the device is done."""
        size = {"height": self.request.height, "width": self.request.width}
        if self.request.num_frames > 1:
            size["num_frames"] = self.request.num_frames
        prompt = dict(self.prompt)
        if "class_labels" in prompt:  # DiT's size is its transformer's own
            size, prompt["class_labels"] = {}, [1] * batch
        pipe(
            **prompt,
            **size,
            guidance_scale=self.request.guidance_scale,
            num_inference_steps=num_steps,
            generator=torch.Generator("cpu").manual_seed(0),
        )
        synchronize(self.device)


def measure_runs(
    model: str,
    device: torch.device,
    path: Path,
    *,
    engine: str,
    turns: int,
    minutes: float,
    tiny: Callable[[Architecture], Architecture] | None,
) -> dict[str, Any]:
    """All cases of a model that are not in the file yet and begin within the time.

    Args:
        model: in `benchmarks.random_models.MODELS`.
        device: where to run.
        path: of the JSON file, which is read if it is of the same commit, device and engine, and written after each
            case.
        engine: that runs the block stack.
        turns: measured runs of each case.
        minutes: after which no further case begins.
        tiny: makes the architecture small, to check this script; None for the published one.
    """
    began = time.monotonic()
    config, architecture, request = subject(model, tiny)
    header = _conditions(model, config, request) | {"tiny": tiny is not None, "device": str(device), "engine": engine}
    result = header | {"cases": _earlier(path, header), "left": []}
    transformer = random_transformer(architecture, dtype_of(config), device)
    pipe, prompt = random_pipeline(
        transformer, config.max_sequence_length or architecture.text_tokens, tiny is not None
    )
    axes = axis_sizes(family_of(transformer), config, architecture, request)
    try:
        host = _host(pipe, engine, SizeClass(model, axes), max(BATCHES.get(model, (1,))))
    except EngineError as error:
        result["absent"] = str(error)
        write(path, result)
        say(f"{model}: {error}")
        return result
    ready = _Model(host, prompt, request, axes, device)
    _measure_missing(_cases(model, ready, turns, result["cases"]), result, path, began + 60 * minutes)
    print_runs(result)
    return result


def _conditions(model: str, config: ModelConfig, request: GenerationRequest) -> dict[str, Any]:
    """What a result says of the machine, the model and the request."""
    return describe() | {
        "part": "runs",
        "model": model,
        "pipeline": config.source.pipeline,
        "dtype": str(dtype_of(config)).removeprefix("torch."),
        "num_steps": request.num_inference_steps,
        "size": {"height": request.height, "width": request.width, "num_frames": request.num_frames},
        "published_speed_up": PUBLISHED_SPEED_UP.get(model),
    }


def _measure_missing(
    cases: Mapping[str, Callable[[], dict[str, Any]]], result: dict[str, Any], path: Path, until: float
) -> None:
    """Adds the cases that the result lacks, and names those that are left at `time.monotonic()` `until`."""
    for name, case in cases.items():
        if name in result["cases"]:
            continue
        if time.monotonic() > until:
            result["left"].append(name)
            continue
        try:
            result["cases"][name] = case()
        except Exception as error:  # out of memory, an engine that refuses: the result of this case
            result["cases"][name] = {"absent": f"{type(error).__name__}: {error}".splitlines()[0]}
        write(path, result)
    write(path, result)


def subject(
    model: str, tiny: Callable[[Architecture], Architecture] | None
) -> tuple[ModelConfig, Architecture, GenerationRequest]:
    """What is measured of a model: its settings, its transformer and the request.

    Args:
        model: in `benchmarks.random_models.MODELS`.
        tiny: makes the architecture small, to check a script; None for the published one.
    """
    config = config_of(model)
    if model in PIPELINES:
        config = replace(config, source=replace(config.source, pipeline=PIPELINES[model]))
    architecture = architecture_of(config.source.pipeline)
    size: dict[str, int] = dict(SIZES.get(model, {}))
    if tiny is not None:
        architecture = tiny(architecture)
        config = replace(config, max_sequence_length=min(config.max_sequence_length or 0, 16) or None)
        side = max(64, config.limits.min_size)
        size = {"height": side, "width": side, "num_inference_steps": 10}
        if config.limits.max_frames > 1:
            size["num_frames"] = 5
    return config, architecture, example_request(config, **size)


def _host(pipe: Any, engine: str, size: SizeClass, most_requests: int) -> PipelineHost:
    """The pipeline with its engine, which is built where TensorRT is asked for and the cache folder lacks it."""
    if engine in PACKAGES:
        family = family_of(pipe.transformer)
        rows = 2 if family.batches_guidance else 1
        build_engine(family, engine, BuildOptions((1, rows, max(LARGEST, rows * most_requests)), (size,)))
    return PipelineHost(pipe, engine)


def _earlier(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """The cases of an earlier call with the same conditions."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    same = ("commit", "hardware", "versions", "tiny", "device", "engine", "size", "num_steps")
    return before.get("cases", {}) if all(before.get(name) == header[name] for name in same) else {}


def _cases(model: str, ready: _Model, turns: int, done: Mapping[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name, in this order; `done` has what came before."""
    own = ready.request.cache
    off = replace(own, interval=1)
    caches = CACHES.get(model) or {"own settings": own}
    cases: dict[str, Callable[[], dict[str, Any]]] = {}
    for batch in BATCHES.get(model, (1,)):
        label = f", batch {batch}"
        cases[f"off{label}"] = lambda batch=batch: _latency(ready, off, batch, turns)  # type: ignore[misc]
        for name, cache in caches.items():
            cases[f"{name}{label}"] = lambda cache=cache, batch=batch, label=label: _against(  # type: ignore[misc]
                _latency(ready, cache, batch, turns), done.get(f"off{label}", {})
            )
    cases["knee"] = lambda: _batch_limit(ready)
    for count in IN_FLIGHT:
        cases[f"{count} in flight"] = lambda count=count: _throughput(  # type: ignore[misc]
            ready, list(caches.values())[-1], count, done.get("knee", {}).get("rows", 1)
        )
    pipe = ready.host.pipe
    return cases | peer_cases(
        pipe,
        lambda num_steps: ready.call(pipe, num_steps),
        list(caches.values())[-1],
        ready.request.num_inference_steps,
        turns,
        done,
    )


def _latency(ready: _Model, cache: CacheConfig, batch: int, turns: int) -> dict[str, Any]:
    """Seconds of runs, then one more whose steps are timed one by one."""
    _reset_peak(ready.device)
    seconds = []
    for turn in range(turns + 1):
        began = time.perf_counter()
        session = ready.run(cache, batch)
        if turn:  # the first one fills allocators and chooses kernels
            seconds.append(time.perf_counter() - began)
    steps = _Steps(ready.device)
    cache_bytes = session.nbytes
    del session
    ready.run(cache, batch, steps)
    steps.end()
    full = len(cache.full_steps(ready.request.num_inference_steps))
    forecasts = steps.seconds[StepKind.FORECAST]
    return {
        "run_s": median(seconds),
        "run_s_all": seconds,
        "full_steps": full,
        "full_step_s": median(steps.seconds[StepKind.FULL]),
        "forecast_step_s": median(forecasts) if forecasts else None,
        "cache_bytes": cache_bytes,
        "peak_bytes": torch.cuda.max_memory_allocated(ready.device) if ready.device.type == "cuda" else None,
        "possible_speed_up": ready.request.num_inference_steps / full,
    }


def _against(on: dict[str, Any], off: Mapping[str, Any]) -> dict[str, Any]:
    """With the speed-up over the run with the cache off, where that was measured."""
    if "run_s" in off:
        on["speed_up"] = off["run_s"] / on["run_s"]
        on["skip_efficiency"] = on["speed_up"] / on["possible_speed_up"]
    return on


def _batch_limit(ready: _Model) -> dict[str, Any]:
    """The batch limit: rows beyond which more bring no more throughput; and the seconds of each batch tried."""
    engine: Engine = ready.host.lane_engine
    family = ready.host.family
    seconds: dict[int, float] = {}

    def seconds_of(rows: int) -> float:
        inputs = family.inputs_of_size({**ready.axes, "batch": rows})
        times = []
        for _ in range(3):
            synchronize(ready.device)
            began = time.perf_counter()
            engine.run(inputs)
            synchronize(ready.device)
            times.append(time.perf_counter() - began)
        seconds[rows] = min(times)
        return seconds[rows]

    return {"rows": find_batch_limit(seconds_of, LARGEST), "seconds_of_rows": seconds}


def _throughput(ready: _Model, cache: CacheConfig, count: int, rows: int) -> dict[str, Any]:
    """Pictures per second of some clients, each with one picture after another; up to `rows` share an engine call."""
    ready.host.pack(PackSettings(max_rows=rows))
    pictures = 2 * count
    try:
        with ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()
            for done in [pool.submit(ready.run, cache) for _ in range(pictures)]:
                done.result()
            taken = time.perf_counter() - began
    finally:
        ready.host.packer = None
    return {"pictures": pictures, "max_rows": rows, "pictures_per_s": pictures / taken}


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def print_runs(result: Mapping[str, Any]) -> None:
    """Prints the table of a result."""
    title = f"{result['model']}: runs of {result['num_steps']} steps, {result['engine']} on {result['device']}"
    columns = ("case", "seconds", "full steps", "full step", "forecast step", "speed-up", "skip efficiency")
    show(title, columns, [(name, *_cells(case)) for name, case in result["cases"].items()])
    if result["left"]:
        say(f"left for another call: {', '.join(result['left'])}")


def _cells(case: Mapping[str, Any]) -> tuple[str, ...]:
    if "absent" in case:
        return ("absent: " + case["absent"],)
    if "rows" in case:
        return (f"{case['rows']} rows",)
    if "run_s" not in case:
        return (f"{case['pictures_per_s']:.3f} pictures/s",)
    full, forecast = case.get("full_step_s"), case.get("forecast_step_s")  # steps of peers are not timed
    return (
        f"{case['run_s']:.3f}",
        str(case["full_steps"]),
        "" if full is None else f"{1e3 * full:.2f} ms",
        "" if forecast is None else f"{1e3 * forecast:.2f} ms",
        f"{case['speed_up']:.2f}" if "speed_up" in case else "",
        f"{case['skip_efficiency']:.2f}" if "skip_efficiency" in case else "",
    )
