"""What the cache knows of a built engine: the record beside it, and how the engine for a block stack is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from plugin.engine_specs import tensorrt_engine_name
from plugin.engines.base import EngineError
from plugin.engines.export import stack_key
from plugin.engines.tensorrt.package import FP8_DTYPE, load_package
from plugin.families.base import Family
from plugin.paths import default_cache_dir

Shapes = dict[str, tuple[int, ...]]  # argument of the block stack -> shape

PLAN = "engine.plan"  # in an engine's folder
_RECORD = "engine.json"


@dataclass(frozen=True)
class Profile:
    """One optimization profile of a built engine: the shapes of every input that it takes.

    Attributes:
        size: for people, as in `SizeClass`.
        smallest, largest: shapes at the smallest and at the largest batch.
    """

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
class Quantized:
    """What was quantised of a block stack.

    Attributes:
        matmuls: matrix multiplications of the exported block stack, those within attention included.
        fp8_matmuls: those of them whose two factors are in fp8.
        samples: recorded block inputs that the ranges are taken from.
    """

    matmuls: int
    fp8_matmuls: int
    samples: int


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in the cache.

    Attributes:
        path: the serialized engine.
        flavour: "tensorrt" or "tensorrt-rtx".
        version: of the package that built it; no other version may load it.
        architectures: the GPU architectures it runs on, as "SM89".
        dtype: of its weights, for example "bfloat16".
        input_dtypes: of each input.
        profiles: one for each size that it was built for.
        layers: of the network.
        engine_bytes, sha256: of the file.
        weights_bytes, activation_bytes: device memory that the compiler planned for weights and for scratch of the
            largest profile; None if it did not report it.
        build_s: seconds from the calibration or the export to the file.
        quantized: what of it is in fp8; None for an engine without fp8.
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
        """The engine's name, as in `plugin.engine_specs.ENGINES`."""
        return tensorrt_engine_name(self.flavour, self.quantized is not None)


def find_engine(
    family: Family, flavour: str, architecture: str, cache_dir: Path | None = None, *, fp8: bool = False
) -> BuiltEngine:
    """The newest engine in the cache for this block stack, the installed package and this GPU.

    Args:
        family: the family, with its blocks in place and in the dtype that is served.
        flavour: "tensorrt" or "tensorrt-rtx".
        architecture: of the GPU, as "SM89".
        cache_dir: None for `default_cache_dir()`.
        fp8: whether to search the engines in fp8, or the others.

    Raises:
        EngineError: there is none; the message says why each engine of these weights does not fit, and how to build
            one that does.
    """
    name, dtype = tensorrt_engine_name(flavour, fp8), dtype_name(family.transformer.dtype)
    if fp8 and dtype != FP8_DTYPE:
        raise EngineError(f"dtype is {dtype}, must be {FP8_DTYPE} with engine {name}")
    version = load_package(flavour).__version__
    folder = (cache_dir or default_cache_dir()) / flavour / stack_key(family, family.export_stack())
    fitting, reasons = [], []
    for path in sorted(folder.glob(f"*/{_RECORD}")):
        try:
            built = read_built(path.parent, flavour)
        except EngineError as error:
            reasons.append(str(error))
            continue
        reason = _why_not(built, name, version, architecture)
        if reason is None:
            fitting.append((path.stat().st_mtime, built))
        else:
            reasons.append(f"{built.path} is {reason}")
    if not fitting:
        found = "; ".join(reasons) or f"{folder} holds none for these weights in {dtype}"
        precision = " --precision fp8" * fp8
        raise EngineError(
            f"no {name} engine to load: {found}. Build one: triton-taylorseer build MODEL --engine {flavour}{precision}"
        )
    return max(fitting, key=lambda each: each[0])[1]


def _why_not(built: BuiltEngine, name: str, version: str, architecture: str) -> str | None:
    """What an engine is that makes it unusable for this name, package and GPU; None if it can be used."""
    if built.engine != name:
        return f"of engine {built.engine}"
    if built.version != version:
        return f"of {built.flavour} {built.version}, and {version} is installed"
    if architecture not in built.architectures:
        return f"for {', '.join(built.architectures)}, and the GPU is {architecture}"
    return None


def read_built(folder: Path, flavour: str) -> BuiltEngine:
    """What is recorded beside an engine in the cache; the engine itself is not read.

    Raises:
        EngineError: the record is damaged; the message names the file.
    """
    path = folder / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        profiles = tuple(
            Profile(each["size"], _as_shapes(each["smallest"]), _as_shapes(each["largest"]))
            for each in record.pop("profiles")
        )
        architectures = tuple(record.pop("architectures"))
        quantized = record.pop("quantized", None)
        return BuiltEngine(
            folder / PLAN,
            flavour,
            profiles=profiles,
            architectures=architectures,
            quantized=quantized and Quantized(**quantized),
            **record,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path} is damaged ({error}): build the engine again") from None


def write_built(built: BuiltEngine, plan: bytes) -> None:
    """Writes an engine to its path and its record beside it, as `read_built` reads it.

    Raises:
        OSError: a file cannot be written.
    """
    built.path.write_bytes(plan)
    record = asdict(built)
    del record["path"], record["flavour"]  # where the record lies says both
    built.path.with_name(_RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Whether the engine's file is the one that its record was written for."""
    try:
        built = read_built(folder, "")
        with built.path.open("rb") as plan:
            return hashlib.file_digest(plan, "sha256").hexdigest() == built.sha256
    except (OSError, EngineError):
        return False


def dtype_name(dtype: object) -> str:
    """A torch dtype as records and configurations have it, for example "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _as_shapes(shapes: Mapping[str, list[int]]) -> Shapes:
    return {name: tuple(shape) for name, shape in shapes.items()}
