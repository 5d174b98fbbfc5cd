"""Compiles a block stack with TensorRT or TensorRT-RTX and keeps engines beside a record of all that decides them.

TensorRT-RTX compiles for named targets on machines without a GPU; TensorRT itself compiles for the GPU at hand.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch

from plugin.engines.base import EngineError, no_gpu
from plugin.engines.export import build_once, export_onnx, stack_key
from plugin.engines.tensorrt.fp8 import DTYPE, Calibration, Quantized, Samples, check_architectures, quantize, versions
from plugin.families.base import Family
from plugin.paths import default_cache_dir

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # engine name -> Python package
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": DTYPE}  # -> dtype of the weights
_REVISION = 2  # raise it when this file changes what it builds


class EngineKind(NamedTuple):
    """What a name of an engine stands for."""

    flavour: str
    fp8: bool


KINDS = {  # engine name -> what it is
    "tensorrt": EngineKind("tensorrt", fp8=False),
    "tensorrt-rtx": EngineKind("tensorrt-rtx", fp8=False),
    "tensorrt-fp8": EngineKind("tensorrt", fp8=True),
    "tensorrt-rtx-fp8": EngineKind("tensorrt-rtx", fp8=True),
}

Shapes = dict[str, tuple[int, ...]]  # argument of the block stack -> shape


@dataclass(frozen=True)
class SizeClass:
    """A size of picture or video that an engine is compiled for; it gets an optimization profile of its own.

    Attributes:
        name: for people, "1024x1024" or "480x832x81".
        axes: the length of every dynamic axis of the block stack but the batch, as `Family.axis_sizes` tells it.
    """

    name: str
    axes: Mapping[str, int]


@dataclass(frozen=True)
class BuildOptions:
    """How to compile.

    Attributes:
        batch: the smallest, the usual and the largest batch of one engine call; guidance branches that a pipeline
            batches count as rows of it.
        sizes: at least one.
        targets: GPU architectures such as "SM89", for TensorRT-RTX; empty for the GPU at hand.
        workspace_bytes: scratch memory that the compiler may plan with, or None for no limit.
        refit: whether weights can be exchanged later.
        weight_streaming: whether weights may stay in host memory when the engine is loaded.
        calibration: what the ranges of matrix multiplications in fp8 are taken from; None for an engine without.
    """

    batch: tuple[int, int, int]
    sizes: tuple[SizeClass, ...]
    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    refit: bool = False
    weight_streaming: bool = False
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise ValueError(f"batch is {self.batch}, must be min,opt,max with 1 <= min <= opt <= max")
        if not self.sizes:
            raise ValueError("sizes is empty, must hold at least one size")


@dataclass(frozen=True)
class Profile:
    """One optimization profile of a built engine: the shapes of every input that it takes."""

    size: str
    smallest: Shapes
    largest: Shapes

    def takes(self, shapes: Shapes) -> bool:
        """Whether inputs of these shapes can be run with it."""
        return all(
            len(shape) == len(self.smallest[name])
            and all(
                low <= n <= high for low, n, high in zip(self.smallest[name], shape, self.largest[name], strict=True)
            )
            for name, shape in shapes.items()
        )


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in the cache.

    Attributes:
        path: the serialized engine.
        flavour: "tensorrt" or "tensorrt-rtx".
        version: of the package that built it, and the only one that may load it.
        architectures: the GPU architectures it runs on, as "SM89".
        dtype: of its weights, for example "bfloat16".
        input_dtypes: of each input.
        profiles: one for each size that it was built for.
        layers: of the network.
        engine_bytes, sha256: of the file.
        weights_bytes, activation_bytes: device memory that the compiler planned for weights and for scratch of the
            largest profile; None where it did not say.
        build_s: seconds from the calibration or the export to the file.
        quantized: what of it is in fp8; None for an engine without.
    """

    path: Path
    flavour: str
    version: str
    architectures: tuple[str, ...]
    dtype: str
    input_dtypes: Mapping[str, str]
    profiles: tuple[Profile, ...]
    layers: int
    engine_bytes: int
    sha256: str
    weights_bytes: int | None
    activation_bytes: int | None
    build_s: float
    quantized: Quantized | None = None

    @property
    def engine(self) -> str:
        """Its name, as in `KINDS`."""
        return _engine_name(self.flavour, self.quantized is not None)


class Watch(Protocol):
    """Follows a build; a class that inherits these methods does nothing in them."""

    def stage(self, name: str) -> None:
        """Called as a stage begins: exporting, compiling."""
        return None

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """Called as a phase of the compiler begins, inside another one or on its own."""
        return None

    def step_done(self, name: str, step: int) -> bool:
        """Called after each step of a phase; False ends the build."""
        return True

    def phase_ended(self, name: str) -> None:
        """Called as a phase ends."""
        return None


class NoWatch(Watch):
    """Nobody looks on."""


def load_package(flavour: str) -> ModuleType:
    """The Python package of a flavour.

    Raises:
        EngineError: it is not installed; the message says how to get it.
    """
    package = PACKAGES[flavour]
    try:
        return import_module(package)
    except ImportError as error:
        hint = "pip install tensorrt-rtx" if flavour == "tensorrt-rtx" else "run in NVIDIA's Triton container"
        raise EngineError(
            f"engine {flavour} needs the package {package}, which cannot be imported ({error}): {hint}"
        ) from None


def build_engine(
    family: Family,
    flavour: str,
    options: BuildOptions,
    cache_dir: Path | None = None,
    watch: Watch | None = None,
    samples: Callable[[], Samples] | None = None,
) -> BuiltEngine:
    """The compiled engine of a family's block stack, from the cache where it is whole.

    Args:
        family: the family, with its blocks in place and in the dtype to compile.
        flavour: "tensorrt" or "tensorrt-rtx".
        options: how to compile.
        cache_dir: None for `default_cache_dir()`.
        watch: follows the build.
        samples: what `options.calibration` records; called where the options have one and the cache has no engine.

    Raises:
        EngineError: a package is missing, a target is unknown or too old, or the quantiser or the compiler refuses; the
            message says why.
        OSError: the cache cannot be written, for example because the disk is full.
    """
    watch = watch or NoWatch()
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
        exported, quantized = _export(family, stack, onnx, options, samples, watch)
        watch.stage(f"compiling with {flavour} {trt.__version__} for {', '.join(architectures)}")
        compiler = _Compiler(trt, flavour, options, watch)
        examples = family.example_inputs()
        shapes = [_profile_shapes(family, examples, options.batch, size.axes) for size in options.sizes]
        # TensorRT-RTX times nothing while it builds.
        timing = root / f"timing-{trt.__version__}-{architectures[0]}.cache" if flavour == "tensorrt" else None
        plan = compiler.compile(exported, shapes, timing)
        shutil.rmtree(onnx)
        (scratch / "engine.plan").write_bytes(plan)
        record = {
            "version": trt.__version__,
            "architectures": architectures,
            "dtype": _name(family.transformer.dtype),
            "input_dtypes": {name: _name(tensor.dtype) for name, tensor in examples.items()},
            "profiles": [
                {"size": size.name, "smallest": smallest, "largest": largest}
                for size, (smallest, _, largest) in zip(options.sizes, shapes, strict=True)
            ],
            "layers": compiler.layers,
            "engine_bytes": len(plan),
            "sha256": hashlib.sha256(plan).hexdigest(),
            "weights_bytes": compiler.planned("Total Weights Memory"),
            "activation_bytes": compiler.planned("Total Activation Memory"),
            "build_s": time.perf_counter() - began,
            "quantized": quantized and asdict(quantized),
        }
        (scratch / "engine.json").write_text(json.dumps(record, indent=1), encoding="utf-8")

    build_once(folder, lambda: _is_whole(folder), build)
    return read_built(folder, flavour)


def _export(
    family: Family,
    stack: torch.nn.Module,
    folder: Path,
    options: BuildOptions,
    samples: Callable[[], Samples] | None,
    watch: Watch,
) -> tuple[Path, Quantized | None]:
    """Writes what is compiled, and tells what of it is in fp8."""
    recorded: Samples = ()
    if options.calibration is not None:
        assert samples is not None, "who asks for a calibration has its samples"
        recorded = samples()
    watch.stage("exporting the block stack")
    exported = folder / "model.onnx"
    export_onnx(family, stack, exported)
    if options.calibration is None:
        return exported, None
    watch.stage(f"quantising with {len(recorded)} recorded inputs")
    return folder / "fp8.onnx", quantize(exported, recorded, folder / "fp8.onnx")


def options_key(version: str, architectures: tuple[str, ...], options: BuildOptions) -> str:
    """A hash of all that decides an engine besides the block stack.

    Args:
        version: of the package.
        architectures: of the GPUs that it is for.
        options: how to compile.
    """
    description = [version, _REVISION, architectures, asdict(options)]
    if options.calibration is not None:
        description.append(versions())
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def find_engine(
    family: Family, flavour: str, architecture: str, cache_dir: Path | None = None, *, fp8: bool = False
) -> BuiltEngine:
    """The engine that was built last for this block stack, this package and this GPU.

    Args:
        family: the family, with its blocks in place and in the dtype that is served.
        flavour: "tensorrt" or "tensorrt-rtx".
        architecture: of the GPU, as "SM89".
        cache_dir: None for `default_cache_dir()`.
        fp8: whether to look among those in fp8, or among the others.

    Raises:
        EngineError: there is none; the message says what is wrong with those that there are, and how to build one.
    """
    name, dtype = _engine_name(flavour, fp8), _name(family.transformer.dtype)
    if fp8 and dtype != DTYPE:
        raise EngineError(f"dtype is {dtype}, must be {DTYPE} with engine {name}")
    version = load_package(flavour).__version__
    folder = (cache_dir or default_cache_dir()) / flavour / stack_key(family, family.export_stack())
    fitting, reasons = [], []
    for path in sorted(folder.glob("*/engine.json")):
        try:
            built = read_built(path.parent, flavour)
        except EngineError as error:
            reasons.append(str(error))
            continue
        if built.engine != name:
            reasons.append(f"{built.path} is of engine {built.engine}")
        elif built.version != version:
            reasons.append(f"{built.path} is of {flavour} {built.version}, and {version} is installed")
        elif architecture not in built.architectures:
            targets = ", ".join(built.architectures)
            reasons.append(f"{built.path} is for {targets}, and the GPU is {architecture}")
        else:
            fitting.append((path.stat().st_mtime, built))
    if not fitting:
        found = "; ".join(reasons) or f"{folder} holds none for these weights in {dtype}"
        precision = " --precision fp8" * fp8
        raise EngineError(
            f"no {name} engine to load: {found}. Build one: triton-taylorseer build MODEL --engine {flavour}{precision}"
        )
    return max(fitting, key=lambda each: each[0])[1]


def read_built(folder: Path, flavour: str) -> BuiltEngine:
    """What is recorded beside an engine in the cache; the engine itself is not read.

    Raises:
        EngineError: the record is damaged; the message names the file.
    """
    try:
        record = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        profiles = tuple(
            Profile(each["size"], _as_shapes(each["smallest"]), _as_shapes(each["largest"]))
            for each in record.pop("profiles")
        )
        architectures = tuple(record.pop("architectures"))
        quantized = record.pop("quantized", None)
        return BuiltEngine(
            folder / "engine.plan",
            flavour,
            profiles=profiles,
            architectures=architectures,
            quantized=quantized and Quantized(**quantized),
            **record,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{folder / 'engine.json'} is damaged ({error}): build the engine again") from None


def check_targets(trt: ModuleType, flavour: str, targets: tuple[str, ...]) -> None:
    """Checks the names of GPU architectures.

    Raises:
        EngineError: the package cannot compile for one of them; the message lists those that it can.
    """
    if targets and flavour != "tensorrt-rtx":
        raise EngineError(f"target is {', '.join(targets)}, must be left out: {flavour} compiles for the GPU at hand")
    for target in targets:
        known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
        if target not in known:
            listed = ", ".join(sorted(known, key=lambda name: int(name[2:])))
            raise EngineError(f"target is {target}, must be one of: {listed}")


def present_architecture(flavour: str) -> str:
    """The architecture of torch's present GPU, as "SM90".

    Raises:
        EngineError: there is none; the message says what helps.
    """
    if missing := no_gpu():
        more = ", or name the GPU to compile for with --target" if flavour == "tensorrt-rtx" else ""
        raise EngineError(f"engine {flavour} needs an NVIDIA GPU with its driver, and {missing}{more}")
    major, minor = torch.cuda.get_device_capability()
    return f"SM{major}{minor}"


class Messages:
    """A logger of the package that keeps the last error and what the compiler says of memory."""

    def __init__(self, trt: ModuleType) -> None:
        self.errors: list[str] = []
        self.notes: list[str] = []
        outer, severities = self, trt.ILogger.Severity

        class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                    outer.errors.append(message)
                elif message.startswith("Total "):
                    outer.notes.append(message)

        self.logger = Logger()

    def last_error(self) -> str:
        """The last error, or that there was none."""
        return self.errors[-1] if self.errors else "it gave no reason"


class _Compiler:
    """One build: parses and compiles, and keeps what it learns on the way."""

    def __init__(self, trt: ModuleType, flavour: str, options: BuildOptions, watch: Watch) -> None:
        self._trt = trt
        self._name = f"{flavour} {trt.__version__}"
        self._options = options
        self._watch = watch
        self._messages = Messages(trt)
        self.layers = 0

    def compile(
        self, exported: Path, profiles: list[tuple[Shapes, Shapes, Shapes]], timing_cache: Path | None
    ) -> bytes:
        """The serialized engine of an ONNX file; one optimization profile for each (smallest, usual, largest)."""
        builder = self._trt.Builder(self._messages.logger)
        network = self._parse(builder, exported)
        self.layers = network.num_layers
        config = builder.create_builder_config()
        configure(self._trt, config, self._options)
        for smallest, usual, largest in profiles:
            profile = builder.create_optimization_profile()
            for name in smallest:
                profile.set_shape(name, smallest[name], usual[name], largest[name])
            config.add_optimization_profile(profile)
        if timing_cache is not None:
            self._read_timing_cache(config, timing_cache)
        config.progress_monitor = _monitor(self._trt, self._watch)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            hint = " (with refit it wants a GPU to build on)" if self._options.refit else ""
            raise EngineError(f"{self._name} cannot compile the block stack{hint}: {self._messages.last_error()}")
        if timing_cache is not None:
            replace_file(timing_cache, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def planned(self, what: str) -> int | None:
        """Bytes of device memory that the compiler said, the largest of all profiles and targets."""
        found = [re.fullmatch(rf"{what}: (\d+) bytes", note) for note in self._messages.notes]
        return max((int(each[1]) for each in found if each), default=None)

    def _parse(self, builder: Any, exported: Path) -> Any:
        # Strongly typed: precisions are those of the ONNX file. The flag is gone where networks know nothing else.
        flag = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = self._trt.OnnxParser(network, self._messages.logger)
        if not parser.parse_from_file(str(exported)):
            errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise EngineError(f"{self._name} cannot parse the block stack: {errors}")
        return network

    def _read_timing_cache(self, config: Any, path: Path) -> None:
        content = b""
        with suppress(OSError):
            content = path.read_bytes()
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):  # damaged: begin anew
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def configure(trt: ModuleType, config: Any, options: BuildOptions) -> None:
    """Sets the options in an IBuilderConfig of the package, all but profiles and timing cache."""
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32, as in torch
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
    for i, target in enumerate(options.targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, target), i)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)


def _monitor(trt: ModuleType, watch: Watch) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.phase_started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.step_done(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watch.phase_ended(phase_name)

    return Monitor()


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in one step, so that no other builder reads half of it."""
    scratch = path.with_name(f"{path.name}.{time.monotonic_ns()}")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)  # on a full disk, part of it is there


def _is_whole(folder: Path) -> bool:
    """Whether the engine's file is the one that its record was written for."""
    try:
        built = read_built(folder, "")
        with built.path.open("rb") as plan:
            return hashlib.file_digest(plan, "sha256").hexdigest() == built.sha256
    except (OSError, EngineError):
        return False


def _as_shapes(shapes: Mapping[str, list[int]]) -> Shapes:
    return {name: tuple(shape) for name, shape in shapes.items()}


def _engine_name(flavour: str, fp8: bool) -> str:
    return next(name for name, kind in KINDS.items() if kind == (flavour, fp8))


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


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
