"""What rounding to fp8 costs in quality: the embedded model's pictures, without a GPU.

The block stack is calibrated and quantised as `triton-taylorseer build emoji --precision fp8` does it, and ONNX Runtime
runs the quantised file: factors are rounded to fp8 as on a GPU, sums are taken in another order. Every picture is
compared with the float32 picture of the same prompt and seed, with the cache off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from diffusers import DiffusionPipeline
from rich.progress import track

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import MODEL, config_of, parser_of, say, show, write
from plugin.building.calibration import Size, calibration_of, record
from plugin.building.judge import psnr
from plugin.config import ModelConfig
from plugin.denoising.events import Pixels
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.engines.export import export_onnx
from plugin.engines.onnxruntime_engine import OnnxRuntimeEngine
from plugin.engines.tensorrt.fp8 import Calibration, Samples, quantize
from plugin.engines.tensorrt.package import FP8_DTYPE
from plugin.engines.tensorrt.record import Quantized
from plugin.families.base import BlockInputs, Family

PROMPTS = (  # the calibration uses none of them
    "red apple, 3d",
    "a smiling face with sunglasses",
    "a cat",
    "a rocket",
    "a slice of pizza",
    "a blue heart",
    "a tree",
    "a snowman",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes the result as JSON."""
    parser = parser_of("fp8", __doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS / "fp8.json")
    arguments = parser.parse_args(argv)
    result = measure(arguments.steps)
    write(arguments.output, result)
    _print(result)


def measure(num_steps: int) -> dict[str, Any]:
    """All figures of one run: PSNR in dB of each picture, and relative L2 distances of the block stack's feature."""
    config = config_of(MODEL)
    pipe = load_pipeline(replace(config.source, dtype=FP8_DTYPE))
    calibration, unseen = calibration_of(config, _sizes(config)), calibration_of(config, _sizes(config), PROMPTS)
    hosts = {"float32": PipelineHost(load_pipeline(config.source)), FP8_DTYPE: PipelineHost(pipe)}
    with tempfile.TemporaryDirectory() as folder:
        family = hosts[FP8_DTYPE].family
        engine, quantized = quantized_engine(family, _record(pipe, calibration, config), Path(folder))
        hosts["fp8"] = PipelineHost(pipe, lambda family: engine)
        distances = [distance(family, engine, sample) for sample in _record(pipe, unseen, config)]
        psnr_db = compare(hosts, config, num_steps)
    return describe() | {
        "nvidia_modelopt": version("nvidia-modelopt"),
        "model": MODEL,
        "num_steps": num_steps,
        "cache": asdict(config.defaults.cache),
        "prompts": PROMPTS,
        "calibration": {
            "prompts": [each.prompt for each in calibration.requests],
            "steps_of_each": calibration.steps,
            **asdict(quantized),
        },
        "relative_distance_of_features": distances,
        "psnr_db": psnr_db,
    }


def quantized_engine(family: Family, samples: Samples, folder: Path) -> tuple[OnnxRuntimeEngine, Quantized]:
    """The block stack with its factors rounded to fp8, run by ONNX Runtime.

    Args:
        family: the stack's family, in float16.
        samples: to calibrate with.
        folder: an empty folder, which the engine reads its weights from.
    """
    export_onnx(family, family.export_stack().eval(), folder / "model.onnx")
    quantized = quantize(folder / "model.onnx", samples, folder / "fp8.onnx")
    return OnnxRuntimeEngine(folder / "fp8.onnx", None, family.device), quantized


def compare(hosts: Mapping[str, PipelineHost], config: ModelConfig, num_steps: int) -> dict[str, list[float]]:
    """PSNR of each picture of each host, with the cache off and on, against the first host's with the cache off."""
    intervals = {"cache off": 1, "cache on": config.defaults.cache.interval}
    made = {
        f"{name}, {cache}": [picture(host, config, seed, num_steps, interval) for seed in range(len(PROMPTS))]
        for name, host in track(hosts.items(), "pictures")
        for cache, interval in intervals.items()
    }
    (_, reference), *others = made.items()
    return {name: [psnr(*pair) for pair in zip(each, reference, strict=True)] for name, each in others}


def picture(host: PipelineHost, config: ModelConfig, seed: int, num_steps: int, interval: int) -> Pixels:
    """The picture of the prompt of this number, (1, height, width, 3)."""
    cache = replace(config.defaults.cache, interval=interval)
    request = replace(
        config.defaults, prompt=PROMPTS[seed], seed=seed, num_inference_steps=num_steps, cache=cache, deadline_ms=None
    )
    return generate(host, request, max_sequence_length=config.max_sequence_length).image


def distance(family: Family, engine: OnnxRuntimeEngine, sample: BlockInputs) -> float:
    """Relative L2 distance of an engine's feature from torch's, both in float16."""
    with torch.no_grad():
        expected = family.block_stack()(**sample).double()
    return float((engine.run(sample).double() - expected).norm() / expected.norm())


def _sizes(config: ModelConfig) -> list[Size]:
    return [(config.defaults.height, config.defaults.width, config.defaults.num_frames)]


def _record(pipe: DiffusionPipeline, calibration: Calibration, config: ModelConfig) -> Samples:
    return record(pipe, calibration, config.max_sequence_length)["transformer"]


def _print(result: dict[str, Any]) -> None:
    title = f"{MODEL}, {result['num_steps']} steps, against float32 with the cache off"
    psnr_db = result["psnr_db"]
    rows = [(name, f"{mean(values):.1f} dB", f"{min(values):.1f} dB") for name, values in psnr_db.items()]
    show(title, ("", "PSNR, mean", "least"), rows, numbers=True)
    distances = result["relative_distance_of_features"]
    say(f"features: {mean(distances):.1%} off, at most {max(distances):.1%}")


if __name__ == "__main__":
    main()
