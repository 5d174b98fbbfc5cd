"""The reference engine: the block stack as torch modules, not compiled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from plugin.engine_specs import EngineSpec
from plugin.families.base import BlockInputs, Family


class TorchEngine:
    """Runs the diffusers blocks themselves: results are bit for bit those of the plain pipeline."""

    name = "torch"

    def __init__(self, block_stack: nn.Module) -> None:
        self._block_stack = block_stack

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """See `Engine.run`; the result is memory of its own."""
        return self._block_stack(**inputs)


def load_engine(family: Family, spec: EngineSpec, cache_dir: Path | None, threads: int | None) -> TorchEngine:
    """The engine of a family. Nothing is compiled, and torch's own number of threads applies."""
    return TorchEngine(family.block_stack())
