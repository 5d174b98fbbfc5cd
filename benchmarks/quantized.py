"""What weights below 16 bits save in memory and cost in quality: the embedded model's pictures, without a GPU.

Every picture is compared with the bfloat16 picture of the same prompt and seed with the cache off. The ways take turns,
picture by picture.

int8, fp8       the transformer's linear layers, by torchao, as the parameter `quantization` does it
nf4             the transformer's linear layers rounded by bitsandbytes and computed in bfloat16: diffusers loads a
                transformer in nf4 on a GPU alone, where bitsandbytes computes with the same rounded weights
encoders nf4    both text encoders, by bitsandbytes, as the parameter does it

Bytes of published transformers and of T5-XXL follow from their shapes: nothing of them is loaded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

import diffusers
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from rich.progress import track
from torch import nn
from transformers import T5Config, T5EncoderModel

from benchmarks.environment import RESULTS, describe
from benchmarks.fp8 import PROMPTS
from benchmarks.harness import MODEL, check_least, config_of, parser_of, show, use_threads_of, write
from plugin.building.judge import psnr
from plugin.config import ModelConfig
from plugin.denoising.events import Pixels
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.families.weights import weight_bytes
from plugin.serving.published import PUBLISHED
from taylorseer import CacheConfig

DTYPE = "bfloat16"
WAYS: dict[str, dict[str, str]] = {  # name -> kind by component
    "bfloat16": {},
    "int8": {"transformer": "int8"},
    "fp8": {"transformer": "fp8"},
    "nf4": {"transformer": "nf4"},
    "encoders nf4": {"text_encoder": "nf4", "text_encoder_2": "nf4"},
}
KINDS = ("int8", "fp8", "nf4")
PUBLISHED_MODELS = (  # of classes that keep no layer in float32
    "black-forest-labs/FLUX.1-dev",
    "HiDream-ai/HiDream-I1-Full",
    "Qwen/Qwen-Image",
    "stabilityai/stable-diffusion-3.5-large",
    "black-forest-labs/FLUX.2-dev",
)
# Of FLUX.1, Stable Diffusion 3, HiDream and others: the encoder of google/t5-v1_1-xxl.
_T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints tables, and writes the result as JSON."""
    parser = parser_of("quantized", __doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pictures", type=int, default=len(PROMPTS), help="of each way")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantized.json")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, steps=1, pictures=1)
    result = measure(arguments.steps, arguments.pictures)
    write(arguments.output, result)
    _print(result)


def measure(num_steps: int, pictures: int) -> dict[str, Any]:
    """All figures of one run: bytes of weights, PSNR in dB and seconds of each picture."""
    config = config_of(MODEL)
    use_threads_of(config)
    pipes = {name: _loaded(config, kinds) for name, kinds in WAYS.items()}
    sizes = {name: _bytes(pipe, WAYS[name]) for name, pipe in pipes.items()}  # a CPU packs nf4 otherwise when it runs
    hosts = {name: PipelineHost(pipe) for name, pipe in pipes.items()}
    caches = {"off": replace(config.defaults.cache, interval=1), "on": config.defaults.cache}
    found: dict[str, dict[str, Any]] = {
        name: {"bytes": sizes[name], "psnr_db": {"off": [], "on": []}, "seconds": {"off": [], "on": []}}
        for name in WAYS
    }
    for seed in track(range(pictures), "pictures"):
        reference, _ = _picture(hosts["bfloat16"], config, seed, num_steps, caches["off"])
        for name, host in hosts.items():
            for way, cache in caches.items():
                picture, seconds = _picture(host, config, seed, num_steps, cache)
                found[name]["psnr_db"][way].append(psnr(picture, reference))
                found[name]["seconds"][way].append(seconds)
    return describe() | {
        "packages": {name: version(name) for name in ("torchao", "bitsandbytes")},
        "model": MODEL,
        "dtype": DTYPE,
        "num_steps": num_steps,
        "full_steps": config.defaults.cache.num_full_steps(num_steps),
        "prompts": PROMPTS[:pictures],
        "ways": found,
        "published_bytes": published_bytes(),
    }


def _loaded(config: ModelConfig, kinds: dict[str, str]) -> Any:
    by_parameter = tuple((name, kind) for name, kind in kinds.items() if (name, kind) != ("transformer", "nf4"))
    pipe: Any = load_pipeline(replace(config.source, dtype=DTYPE, quantization=by_parameter))
    if kinds.get("transformer") == "nf4":
        round_to_nf4(pipe.transformer)
    return pipe


def round_to_nf4(module: nn.Module) -> None:
    """Rounds the weights of linear layers to the numbers that bitsandbytes computes with in nf4."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.data = dequantize_4bit(*quantize_4bit(part.weight.data, quant_type="nf4"))


def _bytes(pipe: Any, kinds: dict[str, str]) -> dict[str, int]:
    """Of the weights of each component that can be quantised."""
    components = {name: getattr(pipe, name) for name in ("transformer", "text_encoder", "text_encoder_2")}
    rounded = kinds.get("transformer") == "nf4"
    return {
        name: quantized_bytes(component, "nf4") if rounded and name == "transformer" else weight_bytes(component)
        for name, component in components.items()
    }


def _picture(
    host: PipelineHost, config: ModelConfig, seed: int, num_steps: int, cache: CacheConfig
) -> tuple[Pixels, float]:
    """The picture of the prompt of this number, (1, height, width, 3), and its seconds."""
    request = replace(
        config.defaults, prompt=PROMPTS[seed], seed=seed, num_inference_steps=num_steps, cache=cache, deadline_ms=None
    )
    began = time.perf_counter()
    image = generate(host, request, max_sequence_length=config.max_sequence_length).image
    return image, time.perf_counter() - began


def published_bytes() -> dict[str, dict[str, int]]:
    """Of published transformers and of T5-XXL, in bfloat16 and in each kind."""
    modules: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for name in PUBLISHED_MODELS:
            architecture = PUBLISHED[name]
            modules[name] = getattr(diffusers, architecture.transformer)(**architecture.options)
        modules["T5-XXL"] = T5EncoderModel(T5Config.from_dict({"feed_forward_proj": "gated-gelu", **_T5_XXL}))
    kept = {"T5-XXL": ("wo",)}  # transformers leaves it out of nf4
    return {
        name: {"bfloat16": 2 * sum(each.numel() for each in module.parameters())}
        | {kind: quantized_bytes(module, kind, kept.get(name, ()) if kind == "nf4" else ()) for kind in KINDS}
        for name, module in modules.items()
    }


def quantized_bytes(module: nn.Module, kind: str, kept: Sequence[str] = ()) -> int:
    """Bytes of a module in bfloat16 once its linear layers are quantised.

    Args:
        module: its shapes count alone.
        kind: "int8" has a scale of 4 bytes and a zero point of one for each row, "fp8" a scale; "nf4" has a scale of 4
            bytes for each 64 numbers, and a table of 16 for each layer.
        kept: last names of linear layers that are not quantised.
    """
    layers = [
        part.weight.shape
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name.rpartition(".")[2] not in kept
    ]
    numbers = sum(each.numel() for each in layers)
    rest = 2 * (sum(each.numel() for each in module.parameters()) - numbers)
    if kind == "nf4":
        return rest + sum(math.ceil(each.numel() / 2) + 4 * math.ceil(each.numel() / 64) + 64 for each in layers)
    return rest + numbers + sum(rows * {"int8": 5, "fp8": 4}[kind] for rows, _ in layers)


def _print(result: dict[str, Any]) -> None:
    rows = [
        (
            name,
            f"{sum(each['bytes'].values()) / 2**20:.1f} MiB",
            *(f"{mean(each['psnr_db'][way]):.1f} dB" for way in ("off", "on")),
            *(f"{median(each['seconds'][way]):.2f} s" for way in ("off", "on")),
        )
        for name, each in result["ways"].items()
    ]
    title = f"{MODEL}, {result['num_steps']} steps, against {DTYPE} with the cache off"
    show(title, ("", "weights", "PSNR, off", "on", "seconds, off", "on"), rows, numbers=True)
    rows = [
        (name, *(f"{nbytes / 2**30:.2f} GiB" for nbytes in each.values()))
        for name, each in result["published_bytes"].items()
    ]
    show("Weights", ("", DTYPE, *KINDS), rows, numbers=True)


if __name__ == "__main__":
    main()
