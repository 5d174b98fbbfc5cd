"""What runs the block stack at full steps."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Protocol

import torch

from plugin.engine_specs import EngineSpec
from plugin.errors import Outcome, RequestError
from plugin.families.base import BlockInputs, Family
from plugin.families.weights import is_quantized
from plugin.memory import give_back
from plugin.quantization import why_unquantized


class EngineError(RuntimeError):
    """An engine cannot be built, loaded or run; the message says why and what helps."""


class UnsupportedShape(RequestError, ValueError):
    """The engine was not built for a request's size; the message lists the sizes that it was built for."""

    outcome = Outcome.INVALID


def no_gpu() -> str | None:
    """Why torch has no NVIDIA GPU here and what helps; None if it has one."""
    if torch.cuda.is_available():
        return None
    why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU and driver"
    return f"{why}: install them, start the container with --gpus all"


def drop_blocks(families: Iterable[Family]) -> None:
    """Drops the torch blocks of transformers whose engines need them no more, and gives the memory back: engines take
    theirs from the device and the system, not from what torch keeps for itself."""
    for family in families:
        family.release_blocks()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    give_back()


def check_weights(spec: EngineSpec, family: Family) -> None:
    """Checks that an engine takes a transformer's weights.

    Raises:
        EngineError: they are quantised, and it does not run such blocks.
    """
    if not spec.takes_quantized and is_quantized(family.transformer):
        name = type(family.transformer).__name__
        raise EngineError(
            f"engine is {spec.name!r}, must be 'torch' with the quantised weights of {name}: {why_unquantized(spec)}"
        )


class Engine(Protocol):
    """Runs the block stack of one model; any number of threads may call it.

    Attributes:
        name: the engine's name, as in the model's configuration and in reports.

    A compiled engine has a further attribute, `needs_all_arguments`: its calls must give it every argument of the
    family's `example_inputs`, those that a forward may leave out too. One of several processes has `calls_at_once`, how
    many calls of one row it can run at once; `failure`, why it cannot be used any more; and `close`.
    """

    name: str

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """The block stack's output for one request's inputs.

        Args:
            inputs: the arguments of the family's block stack, by name.
            out: contiguous memory with the shape, dtype and device of `hidden_states`. An engine that can compute into
                given memory uses it. None for the engine's own memory.

        Returns:
            The feature, in the shape and dtype of `hidden_states`: `out`, or memory that the next call may reuse.

        Raises:
            EngineError: it cannot be run; the message says why.
        """
        ...
