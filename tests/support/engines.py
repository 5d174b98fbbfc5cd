"""Engines around another engine: one that records what it is given, one that calls a function first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a model.py imports this file, which Triton does in a process of its own first
    import torch

    from plugin.engines.base import BlockInputs, Engine


class RecordingEngine:
    """Another engine, which keeps what each call was given.

    Attributes:
        inputs: of each call.
        outs: the memory that each call was to write into, or None.
    """

    name = "recording"

    def __init__(self, engine: Engine) -> None:
        self.inputs: list[BlockInputs] = []
        self.outs: list[torch.Tensor | None] = []
        self._engine = engine

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        self.inputs.append(inputs)
        self.outs.append(out)
        return self._engine.run(inputs, out)


class GuardedEngine:
    """Another engine, before each call of which a function sees the inputs: it may raise, wait or count."""

    def __init__(self, engine: Engine, before: Callable[[BlockInputs], None]) -> None:
        self.name = engine.name
        self._engine = engine
        self._before = before

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        self._before(inputs)
        return self._engine.run(inputs, out)
