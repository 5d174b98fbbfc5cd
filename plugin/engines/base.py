"""What runs the block stack at full steps."""

from __future__ import annotations

from typing import Protocol

import torch

from plugin.errors import Outcome, RequestError
from plugin.families.base import BlockInputs


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


class Engine(Protocol):
    """Runs the block stack of one model; any number of threads may call it.

    Attributes:
        name: the engine's name, as in the model's configuration and in reports.

    A compiled engine has a further attribute, `needs_all_arguments`: its calls must give it every argument of the
    family's `example_inputs`, those that a forward may leave out too.
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
