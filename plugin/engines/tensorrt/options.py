"""How a block stack is to be compiled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from plugin.engines.tensorrt.fp8 import Calibration, versions

_REVISION = 2  # raise it when compiler.py or build.py changes what is built


@dataclass(frozen=True)
class SizeClass:
    """A size of picture or video that an engine is compiled for; it gets an optimization profile of its own.

    Attributes:
        name: for people, "1024x1024" or "480x832x81".
        axes: the length of every dynamic axis of the block stack but the batch, as `Family.axis_sizes` returns it.
    """

    name: str
    axes: Mapping[str, int]


@dataclass(frozen=True)
class SizeRange(SizeClass):
    """Sizes that share one optimization profile, as where a picture of any ratio adds its own tokens.

    Attributes:
        smallest, largest: as `axes`, which are the usual ones.
    """

    smallest: Mapping[str, int]
    largest: Mapping[str, int]


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
        calibration: the runs that the ranges of fp8 matrix multiplications are taken from; None for an engine without
            fp8.

    Raises:
        ValueError: the batch is not in order, or there is no size.
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


def options_key(version: str, architectures: tuple[str, ...], options: BuildOptions) -> str:
    """A hash of everything that decides an engine besides the block stack.

    Args:
        version: of the package.
        architectures: of the GPUs that the engine is for.
        options: how to compile.
    """
    description = [version, _REVISION, architectures, asdict(options)]
    if options.calibration is not None:
        description.append(versions())
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode()).hexdigest()[:16]
