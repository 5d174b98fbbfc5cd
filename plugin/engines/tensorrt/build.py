"""Builds the engine of a block stack and keeps it in the cache, beside a record of everything that decides it.

TensorRT-RTX compiles for named targets on machines without a GPU. TensorRT compiles for the GPU at hand.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from plugin.engines.engine_cache import build_once
from plugin.engines.export import exported_onnx, stack_key
from plugin.engines.progress import BuildProgress, NoProgress
from plugin.engines.tensorrt.compiler import Compiler
from plugin.engines.tensorrt.fp8 import Samples, check_architectures, quantize
from plugin.engines.tensorrt.options import BuildOptions, SizeClass, SizeRange, options_key
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
    # TensorRT times kernels while it builds; TensorRT-RTX does not.
    timing = root / f"timing-{trt.__version__}-{architectures[0]}.cache" if flavour == "tensorrt" else None
    build = _Build(family, stack, trt, flavour, architectures, options, timing, progress, samples)
    build_once(folder, lambda: is_whole(folder), build.run)
    return read_built(folder, flavour)


@dataclass(frozen=True)
class _Build:
    """One build, with the checked arguments of `build_engine`.

    Attributes:
        timing_cache: as in `Compiler.compile`.
    """

    family: Family
    stack: nn.Module
    trt: ModuleType
    flavour: str
    architectures: tuple[str, ...]
    options: BuildOptions
    timing_cache: Path | None
    progress: BuildProgress
    samples: Callable[[], Samples] | None

    def run(self, folder: Path) -> None:
        """Writes the engine and its record to an empty folder."""
        began = time.perf_counter()
        onnx = folder / "onnx"
        onnx.mkdir()
        exported, quantized = self._export(onnx)
        version = self.trt.__version__
        self.progress.stage(f"compiling with {self.flavour} {version} for {', '.join(self.architectures)}")
        compiler = Compiler(self.trt, self.flavour, self.options, self.progress)
        examples = self.family.example_inputs()
        shapes = [_profile_shapes(self.family, examples, self.options.batch, size) for size in self.options.sizes]
        plan = compiler.compile(exported, shapes, self.timing_cache)
        shutil.rmtree(onnx)
        built = BuiltEngine(
            path=folder / PLAN,
            flavour=self.flavour,
            version=version,
            architectures=self.architectures,
            dtype=dtype_name(self.family.transformer.dtype),
            input_dtypes={name: dtype_name(tensor.dtype) for name, tensor in examples.items()},
            profiles=tuple(
                Profile(size.name, smallest, largest)
                for size, (smallest, _, largest) in zip(self.options.sizes, shapes, strict=True)
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

    def _export(self, folder: Path) -> tuple[Path, Quantized | None]:
        """Writes the ONNX file to compile; its path, and what of it is in fp8."""
        recorded: Samples = ()
        if self.options.calibration is not None:
            assert self.samples is not None, "a calibration comes with its samples"
            recorded = self.samples()
        self.progress.stage("exporting the block stack")
        exported = exported_onnx(self.family, self.stack, folder)
        if self.options.calibration is None:
            return exported, None
        if exported.parent != folder:  # kept for others; the quantiser changes it and writes beside it
            shutil.copytree(exported.parent, folder, dirs_exist_ok=True)
            exported = folder / exported.name
        self.progress.stage(f"quantising with {len(recorded)} recorded inputs")
        return folder / "fp8.onnx", quantize(exported, recorded, folder / "fp8.onnx")


def _profile_shapes(
    family: Family, examples: Mapping[str, torch.Tensor], batch: tuple[int, int, int], size: SizeClass
) -> tuple[Shapes, Shapes, Shapes]:
    """The smallest, the usual and the largest shape of every input, for one size or a range of them."""

    def shapes(rows: int, axes: Mapping[str, int]) -> Shapes:
        lengths = {**axes, "batch": rows}
        return {
            name: tuple(
                lengths[family.block_axes[name][axis]] if axis in family.block_axes[name] else length
                for axis, length in enumerate(tensor.shape)
            )
            for name, tensor in examples.items()
        }

    least, most = (size.smallest, size.largest) if isinstance(size, SizeRange) else (size.axes, size.axes)
    return shapes(batch[0], least), shapes(batch[1], size.axes), shapes(batch[2], most)
