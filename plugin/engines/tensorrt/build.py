"""Builds the engine of a block stack and keeps it in the cache, beside a record of everything that decides it.

TensorRT-RTX compiles for named targets on machines without a GPU. TensorRT compiles for the GPU at hand.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from plugin.engines.engine_cache import build_once
from plugin.engines.export import exported_onnx, stack_key
from plugin.engines.progress import BuildProgress, NoProgress
from plugin.engines.tensorrt.compiler import Compiler
from plugin.engines.tensorrt.fp8 import Samples, check_architectures, quantize
from plugin.engines.tensorrt.options import BuildOptions, options_key
from plugin.engines.tensorrt.package import check_targets, load_package, present_architecture
from plugin.engines.tensorrt.record import (
    PLAN,
    BuiltEngine,
    Profile,
    Quantized,
    Shapes,
    dtype_name,
    is_whole,
    read_built,
    write_built,
)
from plugin.families.base import Family
from plugin.paths import default_cache_dir


def build_engine(
    family: Family,
    flavour: str,
    options: BuildOptions,
    cache_dir: Path | None = None,
    progress: BuildProgress | None = None,
    samples: Callable[[], Samples] | None = None,
) -> BuiltEngine:
    """The compiled engine of a family's block stack, from the cache if it is there and whole.

    Args:
        family: the family, with its blocks in place and in the dtype to compile.
        flavour: "tensorrt" or "tensorrt-rtx".
        options: how to compile.
        cache_dir: None for `default_cache_dir()`.
        progress: follows the build.
        samples: what `options.calibration` records; called if the options have one and the cache has no engine.

    Raises:
        EngineError: a package is missing, a target is unknown or too old, or the quantiser or the compiler refuses; the
            message says why.
        OSError: the cache cannot be written, for example because the disk is full.
    """
    progress = progress or NoProgress()
    trt = load_package(flavour)
    check_targets(trt, flavour, options.targets)
    architectures = options.targets or (present_architecture(flavour),)
    if options.calibration is not None:
        check_architectures(architectures)
    stack = family.export_stack().eval()
    root = (cache_dir or default_cache_dir()) / flavour
    folder = root / stack_key(family, stack) / options_key(trt.__version__, architectures, options)

    def build(scratch: Path) -> None:
        began = time.perf_counter()
        onnx = scratch / "onnx"
        onnx.mkdir()
        exported, quantized = _export(family, stack, onnx, options, samples, progress)
        progress.stage(f"compiling with {flavour} {trt.__version__} for {', '.join(architectures)}")
        compiler = Compiler(trt, flavour, options, progress)
        examples = family.example_inputs()
        shapes = [_profile_shapes(family, examples, options.batch, size.axes) for size in options.sizes]
        # TensorRT-RTX times no kernels while it builds.
        timing = root / f"timing-{trt.__version__}-{architectures[0]}.cache" if flavour == "tensorrt" else None
        plan = compiler.compile(exported, shapes, timing)
        shutil.rmtree(onnx)
        built = BuiltEngine(
            path=scratch / PLAN,
            flavour=flavour,
            version=trt.__version__,
            architectures=architectures,
            dtype=dtype_name(family.transformer.dtype),
            input_dtypes={name: dtype_name(tensor.dtype) for name, tensor in examples.items()},
            profiles=tuple(
                Profile(size.name, smallest, largest)
                for size, (smallest, _, largest) in zip(options.sizes, shapes, strict=True)
            ),
            layers=compiler.layers,
            engine_bytes=len(plan),
            sha256=hashlib.sha256(plan).hexdigest(),
            weights_bytes=compiler.planned("Total Weights Memory"),
            activation_bytes=compiler.planned("Total Activation Memory"),
            build_s=time.perf_counter() - began,
            quantized=quantized,
        )
        write_built(built, plan)

    build_once(folder, lambda: is_whole(folder), build)
    return read_built(folder, flavour)


def _export(
    family: Family,
    stack: nn.Module,
    folder: Path,
    options: BuildOptions,
    samples: Callable[[], Samples] | None,
    progress: BuildProgress,
) -> tuple[Path, Quantized | None]:
    """Writes the ONNX file to compile; its path, and what of it is in fp8."""
    recorded: Samples = ()
    if options.calibration is not None:
        assert samples is not None, "a calibration comes with its samples"
        recorded = samples()
    progress.stage("exporting the block stack")
    exported = exported_onnx(family, stack, folder)
    if options.calibration is None:
        return exported, None
    if exported.parent != folder:  # kept for others, and the quantiser writes beside it
        shutil.copytree(exported.parent, folder, dirs_exist_ok=True)
        exported = folder / exported.name
    progress.stage(f"quantising with {len(recorded)} recorded inputs")
    return folder / "fp8.onnx", quantize(exported, recorded, folder / "fp8.onnx")


def _profile_shapes(
    family: Family, examples: Mapping[str, torch.Tensor], batch: tuple[int, int, int], axes: Mapping[str, int]
) -> tuple[Shapes, Shapes, Shapes]:
    """The smallest, the usual and the largest shape of every input, for one size."""

    def shapes(rows: int) -> Shapes:
        lengths = {**axes, "batch": rows}
        return {
            name: tuple(
                lengths[family.block_axes[name][axis]] if axis in family.block_axes[name] else length
                for axis, length in enumerate(tensor.shape)
            )
            for name, tensor in examples.items()
        }

    smallest, usual, largest = (shapes(rows) for rows in batch)
    return smallest, usual, largest
