"""Benchmarks for a GPU: each part checks and measures one thing there, and says what it lacks on this machine.

    python -m benchmarks.gpu                                     every part, every model
    python -m benchmarks.gpu --part blocks --model dit_xl_2_256  one model's block stack
    python -m benchmarks.gpu --device cpu --tiny                 the same code on a CPU, with tiny transformers

blocks    One full step's block stack at the published size with random weights: torch eager, torch.compile, CUDA graph,
          ONNX Runtime, AOTInductor, TensorRT, TensorRT-RTX. Each way's distance from torch is checked, and it takes
          turns with torch eager. The ways follow one another: memory holds the weights twice, the cache folder up to
          three times.
runs      Whole runs at the published size with random weights: the cache off and on, peak memory, the batch limit,
          throughput at 1 to 16 in flight. Each model begins no case after --minutes; the next call goes on.
pictures  The embedded model with each engine, cache off and on: engine calls against full steps, distance from the
          pictures of torch, seconds.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_runs
from benchmarks.environment import RESULTS, describe
from benchmarks.harness import check_least, config_of, parser_of, say, show, synchronize, take_turns, warm_up, write
from benchmarks.random_models import MODELS, dtype_of, random_transformer
from plugin.config import ModelConfig
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.engines import make_engine
from plugin.engines.base import Engine
from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.options import BuildOptions, SizeClass
from plugin.families import family_of
from plugin.families.base import BlockInputs, Family
from plugin.paths import default_cache_dir
from plugin.serving.plan import architecture_of, axis_sizes, example_request, feature_of
from plugin.serving.published import Architecture
from taylorseer import Anchors
from taylorseer.session import relative_distance

PARTS = ("blocks", "runs", "pictures")
_REFERENCE_PARAMETERS = 3e9  # up to here the stack runs in float32 too, and torch and engines are compared with that
_TINY: dict[str, dict[str, Any]] = {
    "DiTTransformer2DModel": {"num_layers": 2, "num_attention_heads": 2, "sample_size": 8},
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2},
    "WanTransformer3DModel": {"num_layers": 2, "num_attention_heads": 2, "ffn_dim": 64},
    "HunyuanVideoTransformer3DModel": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
    },
    "HiDreamImageTransformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 128,
        "num_routed_experts": 2,
        "llama_layers": [0, 1],
        "caption_channels": [32, 32],
        "text_emb_dim": 32,
        "max_resolution": (8, 8),
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts, prints a table of each, and writes a JSON file of each."""
    parser = parser_of("gpu", __doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; default: all")
    parser.add_argument(
        "--model", action="append", choices=MODELS, help="of parts blocks and runs; repeatable; default: all"
    )
    parser.add_argument("--engine", default="torch", help="of part runs")
    parser.add_argument("--minutes", type=float, default=9.0, help="of part runs, for each model")
    parser.add_argument("--way", action="append", choices=tuple(WAYS), help="of part blocks; repeatable; default: all")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="tiny transformers and sizes: a check of this script")
    parser.add_argument("--turns", type=int, default=10, help="measured runs of each way")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device is {device}, but torch finds no GPU here; --device cpu --tiny checks the script")
    for part in arguments.part or PARTS:
        if part == "pictures":
            _write(arguments.output / "gpu_pictures.json", measure_pictures(device, arguments.turns, arguments.tiny))
            continue
        for model in arguments.model or MODELS:
            if part == "runs":
                gpu_runs.measure_runs(
                    model,
                    device,
                    arguments.output / f"gpu_runs_{model}.json",
                    engine=arguments.engine,
                    turns=min(arguments.turns, 3),
                    minutes=arguments.minutes,
                    tiny=_tiny if arguments.tiny else None,
                )
                continue
            result = measure_blocks(model, device, arguments.turns, arguments.tiny, tuple(arguments.way or WAYS))
            _write(arguments.output / f"gpu_blocks_{model}.json", result)


# Block stacks


def measure_blocks(model: str, device: torch.device, turns: int, tiny: bool, ways: tuple[str, ...]) -> dict[str, Any]:
    """One full step's block stack of a shipped model's default request, in the dtype that it is served in.

    Args:
        model: in `MODELS`.
        device: where to run.
        turns: measured runs of each way.
        tiny: a tiny transformer of the same class, and a small size.
        ways: in `WAYS`.
    """
    config, architecture, request = gpu_runs.subject(model, _tiny if tiny else None)
    dtype = dtype_of(config)
    family = family_of(random_transformer(architecture, dtype, device))
    axes = axis_sizes(family, config, architecture, request)
    rows = 2 if family.batches_guidance else 1
    inputs = family.inputs_of_size({**axes, "batch": rows})
    stack = family.block_stack()
    parameters = sum(each.numel() for each in stack.parameters())
    expected = stack(**inputs)
    reference = _in_float32(family, inputs) if parameters <= _REFERENCE_PARAMETERS else expected
    allowed = _allowed(relative_distance(expected, reference), dtype)
    default_cache_dir().mkdir(parents=True, exist_ok=True)
    # For engines of random weights, which are of no further use.
    with TemporaryDirectory(prefix="benchmark-", dir=default_cache_dir()) as folder:
        job = _Job(family, inputs, SizeClass(model, axes), Path(folder))
        results = {name: _measure_way(name, job, reference, allowed, turns) for name in ways}
    _, width, _ = feature_of(config, architecture, request)
    assert expected.shape[-1] == width
    eager = median(_milliseconds({"torch eager": _eager(job, {})}, device, turns)["torch eager"])
    forecast = _forecast_ms(expected, device, turns)
    result = describe() | {
        "part": "blocks",
        "model": model,
        "pipeline": config.source.pipeline,
        "tiny": tiny,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "parameters_of_blocks": parameters,
        "size": {"height": request.height, "width": request.width, "num_frames": request.num_frames},
        "shapes": {name: list(tensor.shape) for name, tensor in inputs.items()},
        "reference": "float32" if reference is not expected else "torch eager",
        "eager_ms": eager,
        "forecast_ms": forecast,
        "forecast_over_full": forecast / eager,
        "ways": results,
    }
    _print_blocks(result)
    del family, stack, inputs, job, expected, reference
    _let_go(device)
    return result


def _measure_way(name: str, job: _Job, reference: torch.Tensor, allowed: float, turns: int) -> dict[str, Any]:
    """One way beside torch eager, as JSON: its figures, or why it is absent. Its memory is free after that."""
    device = job.inputs["hidden_states"].device
    notes: dict[str, Any] = {}
    began = time.perf_counter()
    try:
        run = WAYS[name](job, notes)
        distance = relative_distance(run(), reference)
        synchronize(device)
        prepare_s = time.perf_counter() - began
        taken = _milliseconds({"torch eager": _eager(job, {}), name: run}, device, turns)
    except Exception as error:  # what a package says of this machine is the result
        return {"absent": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        run = None  # type: ignore[assignment]
        _let_go(device)
    milliseconds = median(taken[name])
    return {
        "ms": milliseconds,
        "ms_all": taken[name],
        "eager_ms_all": taken["torch eager"],
        "faster_than_eager": median(taken["torch eager"]) / milliseconds,
        "relative_distance": distance,
        "distance_allowed": allowed,
        "distance_holds": distance <= allowed,
        "prepare_s": prepare_s,
        **notes,
    }


def _let_go(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _tiny(architecture: Architecture) -> Architecture:
    """A small transformer of the same class."""
    options = {**architecture.options, **_TINY[architecture.transformer]}
    return replace(architecture, options=options, text_tokens=min(architecture.text_tokens, 16))


Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class _Job:
    """What a way is made from."""

    family: Family
    inputs: BlockInputs
    size: SizeClass
    cache_dir: Path


# Each returns a function that runs the blocks once, and notes what is known of the engine.


def _eager(job: _Job, notes: dict[str, Any]) -> Run:
    stack = job.family.block_stack()
    return lambda: stack(**job.inputs)


def _compiled(job: _Job, notes: dict[str, Any]) -> Run:
    stack = torch.compile(job.family.block_stack())
    return lambda: stack(**job.inputs)


def _cuda_graph(job: _Job, notes: dict[str, Any]) -> Run:
    return _captured(_eager(job, notes), job)


def _captured(run: Run, job: _Job) -> Run:
    if job.inputs["hidden_states"].device.type != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    for _ in range(3):  # what is allocated or compiled by first runs must not be captured
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def _onnxruntime(job: _Job, notes: dict[str, Any]) -> Run:
    engine = make_engine("onnxruntime", job.family, job.cache_dir)
    rmtree(job.cache_dir / "onnx")  # loaded, and as large as the weights
    return _run_of(engine, job)


def _inductor(job: _Job, notes: dict[str, Any]) -> Run:
    return _run_of(make_engine("inductor", job.family, job.cache_dir), job)


def _tensorrt(job: _Job, notes: dict[str, Any]) -> Run:
    return _run_of(_tensorrt_engine("tensorrt", job, notes), job)


def _tensorrt_graph(job: _Job, notes: dict[str, Any]) -> Run:
    return _captured(_tensorrt(job, notes), job)


def _tensorrt_rtx(job: _Job, notes: dict[str, Any]) -> Run:
    return _run_of(_tensorrt_engine("tensorrt-rtx", job, notes), job)


def _tensorrt_engine(flavour: str, job: _Job, notes: dict[str, Any]) -> Engine:
    rows = job.inputs["hidden_states"].shape[0]
    built = build_engine(job.family, flavour, BuildOptions((1, rows, rows), (job.size,)), job.cache_dir)
    notes |= {
        "version": built.version,
        "architectures": list(built.architectures),
        "layers": built.layers,
        "engine_bytes": built.engine_bytes,
        "build_s": built.build_s,
    }
    return make_engine(flavour, job.family, job.cache_dir)


def _run_of(engine: Engine, job: _Job) -> Run:
    out = torch.empty_like(job.inputs["hidden_states"])  # as a request's anchors give it
    return lambda: engine.run(job.inputs, out)


WAYS: dict[str, Callable[[_Job, dict[str, Any]], Run]] = {
    "torch eager": _eager,
    "torch.compile": _compiled,
    "CUDA graph": _cuda_graph,
    "onnxruntime": _onnxruntime,
    "inductor": _inductor,
    "tensorrt": _tensorrt,
    "tensorrt, CUDA graph": _tensorrt_graph,
    "tensorrt-rtx": _tensorrt_rtx,
}


def _in_float32(family: Family, inputs: BlockInputs) -> torch.Tensor:
    """The block stack's output computed in float32 with the same weights; the blocks are put back as they were."""
    stack = family.block_stack()
    dtypes = {name: each.dtype for name, each in stack.named_parameters()}
    wide = {name: each.float() if each.is_floating_point() else each for name, each in inputs.items()}
    try:
        return stack.float()(**wide)
    finally:
        for name, each in stack.named_parameters():
            each.data = each.data.to(dtypes[name])


def _allowed(of_torch: float, dtype: torch.dtype) -> float:
    """The relative L2 distance that an engine may have: twice torch's own from float32, and at least the rounding of a
    few thousand sums in its dtype."""
    return max(2 * of_torch, 2.0 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-4)


def _forecast_ms(features: torch.Tensor, device: torch.device, turns: int) -> float:
    """Milliseconds of a forecast of order 1 from anchors of this shape: a forecast step has it in place of blocks."""
    anchors = Anchors("taylor", 1)
    for step in (0, 5):
        anchors.write(step, features)
    return median(_milliseconds({"forecast": lambda: anchors.forecast(8)}, device, turns)["forecast"])


def _milliseconds(runs: Mapping[str, Run], device: torch.device, turns: int) -> dict[str, list[float]]:
    """Of each way in each turn."""
    warm_up(runs)
    return {name: [each * 1e3 for each in taken] for name, taken in take_turns(runs, turns, device).items()}


# Pictures


def measure_pictures(device: torch.device, turns: int, tiny: bool) -> dict[str, Any]:
    """The embedded model's pictures by each engine, compared with torch's.

    Args:
        device: where to run.
        turns: pictures of each way.
        tiny: 5 steps.
    """
    config = config_of()
    source = replace(config.source, device=str(device))
    steps = 5 if tiny else config.defaults.num_inference_steps
    request = replace(config.defaults, prompt="red apple, 3d", seed=1, num_inference_steps=steps)
    requests = {"off": replace(request, cache=replace(request.cache, interval=1)), "on": request}
    expected: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for engine in ("torch", "onnxruntime", "inductor", "tensorrt", "tensorrt-rtx"):
        try:
            host = _host(engine, source, config)
            figures[engine] = {
                way: _pictures(host, each, config, turns, expected.setdefault(way, {}))
                for way, each in requests.items()
            }
        except Exception as error:  # what a package says of this machine is the result
            figures[engine] = {"absent": f"{type(error).__name__}: {error}".splitlines()[0]}
    result = describe() | {"part": "pictures", "tiny": tiny, "device": str(device), "steps": steps, "engines": figures}
    _print_pictures(result)
    return result


def _host(engine: str, source: Any, config: ModelConfig) -> PipelineHost:
    pipe = load_pipeline(source)
    if engine.startswith("tensorrt"):
        family = family_of(pipe.transformer)
        request = example_request(config)
        axes = axis_sizes(family, config, architecture_of(config.source.pipeline), request)
        build_engine(family, engine, BuildOptions((1, 1, 2), (SizeClass(f"{request.height}x{request.width}", axes),)))
    return PipelineHost(pipe, engine)


def _pictures(
    host: PipelineHost, request: Any, config: ModelConfig, turns: int, expected: dict[str, Any]
) -> dict[str, Any]:
    seconds = []
    for _ in range(turns + 1):
        generation = generate(host, request, max_sequence_length=config.max_sequence_length)
        seconds.append(generation.report.total_s)
    report = generation.report
    picture = generation.image.astype(np.float32)
    of_torch = expected.setdefault("picture", picture)
    error = float(np.mean((picture - of_torch) ** 2))
    return {
        "picture_s": median(seconds[1:]),  # the first is slower: allocators and kernels
        "full_steps": len(report.full_steps),
        "engine_calls": report.engine_calls,
        "engine_calls_are_full_steps": report.engine_calls == len(report.full_steps),
        "psnr_from_torch_db": None if error == 0 else 10 * float(np.log10(255**2 / error)),
    }


# Output


def _write(path: Path, result: dict[str, Any]) -> None:
    write(path, result)
    say(f"wrote {path}")


def _print_blocks(result: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = []
    for name, way in result["ways"].items():
        if "absent" in way:
            rows.append((name, "absent"))
        else:
            figures = (f"{way['ms']:.2f}", f"{way['faster_than_eager']:.2f}x", f"{way['relative_distance']:.2e}")
            rows.append((name, *figures, "yes" if way["distance_holds"] else "NO"))
    rows.append(("forecast", f"{result['forecast_ms']:.3f}", f"{result['forecast_over_full']:.4f} of a full step"))
    title = f"{result['model']}: one full step's blocks, {result['dtype']} on {result['device']}"
    show(title, ("way", "ms", "of eager", "distance", "holds"), rows)
    _print_absent(result["ways"])


def _print_pictures(result: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = []
    for engine, ways in result["engines"].items():
        if "absent" in ways:
            rows.append((engine, "absent"))
            continue
        for way, each in ways.items():
            psnr_db = each["psnr_from_torch_db"]
            distance = "equal" if psnr_db is None else f"{psnr_db:.1f} dB"
            counts = (str(each["full_steps"]), str(each["engine_calls"]))
            rows.append((engine, way, f"{each['picture_s']:.3f}", *counts, distance))
    title = f"emoji, {result['steps']} steps on {result['device']}"
    show(title, ("engine", "cache", "seconds", "full steps", "engine calls", "PSNR from torch"), rows)
    _print_absent(result["engines"])


def _print_absent(ways: dict[str, dict[str, Any]]) -> None:
    for name, way in ways.items():
        if "absent" in way:
            say(f"{name}: {way['absent']}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
