"""Whether TensorRT-RTX compiles the published transformers at their published sizes, tried without a GPU.

Each is cut to one block of each kind, at full width and with random weights: what the compiler needs for a block does
not depend on how many follow. The engines are really compiled; running them takes a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import config_of, parser_of, show, write
from benchmarks.random_models import MODELS, dtype_of, random_transformer
from plugin.engines.base import EngineError
from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.options import BuildOptions, SizeClass
from plugin.families import family_of
from plugin.serving.plan import architecture_of, axis_sizes, example_request

_ONE_OF_EACH = {"num_layers": 1, "num_single_layers": 1}
_HIDREAM = {"llama_layers": [0, 1]}  # one Llama state for each block


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles, prints a table, and writes the result as JSON."""
    parser = parser_of("compile_limits", __doc__)
    parser.add_argument("--model", action="append", choices=MODELS, help="repeatable; default: all")
    parser.add_argument("--target", default="SM89")
    parser.add_argument("--height", type=int, help="pixels; default: the model's")
    parser.add_argument("--width", type=int, help="pixels; default: the model's")
    parser.add_argument("--num-frames", type=int, help="default: the model's")
    parser.add_argument("--output", type=Path, default=RESULTS / "compile_limits.json")
    arguments = parser.parse_args(argv)
    size = {"height": arguments.height, "width": arguments.width, "num_frames": arguments.num_frames}
    models = {}
    for model in arguments.model or MODELS:
        models[model] = compile_cut(model, arguments.target, **size)
        Console().print(model, models[model], highlight=False)
        write(arguments.output, describe() | {"target": arguments.target, "models": models})
    _print(models, arguments.target)


def compile_cut(model: str, target: str, **size: int | None) -> dict[str, Any]:
    """Figures of one model's engine, or the compiler's message where it refuses the model.

    Args:
        model: in `MODELS`.
        target: a GPU architecture, for example "SM89".
        **size: height, width and num_frames; None for the model's own.
    """
    config = config_of(model)
    architecture = architecture_of(config.source.pipeline)
    known = architecture.config
    cut = {name: value for name, value in {**_ONE_OF_EACH, **_HIDREAM}.items() if name in known}
    architecture = replace(architecture, options={**architecture.options, **cut})
    request = example_request(config, **size)
    family = family_of(random_transformer(architecture, dtype_of(config), torch.device("cpu")))
    axes = axis_sizes(family, config, architecture, request)
    rows = 2 if family.batches_guidance else 1
    frames = f"x{request.num_frames}" if request.num_frames > 1 else ""
    name = f"{request.height}x{request.width}{frames}"
    figures: dict[str, Any] = {"size": name, "axes": axes, "batch": rows, "dtype": str(dtype_of(config))[6:]}
    options = BuildOptions((rows, rows, rows), (SizeClass(name, axes),), (target,))
    with tempfile.TemporaryDirectory() as cache:
        try:
            built = build_engine(family, "tensorrt-rtx", options, Path(cache))
        except (EngineError, OSError) as error:
            return figures | {"refused": str(error)}
    return figures | {
        "version": built.version,
        "layers": built.layers,
        "engine_bytes": built.engine_bytes,
        "weights_bytes": built.weights_bytes,
        "activation_bytes": built.activation_bytes,
        "build_s": built.build_s,
    }


def _print(models: dict[str, dict[str, Any]], target: str) -> None:
    rows = []
    for model, figures in models.items():
        row = (model, figures["size"], figures["dtype"])
        if "refused" in figures:
            rows.append((*row, "refused"))
        else:
            mib = [f"{figures[name] / 2**20:,.0f} MiB" for name in ("weights_bytes", "activation_bytes")]
            rows.append((*row, *mib, f"{figures['build_s']:.0f} s"))
    title = f"One block of each kind, compiled by TensorRT-RTX for {target}"
    show(title, ("model", "size", "dtype", "weights", "scratch", "built in"), rows)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
