"""TaylorSeer on the plain pipeline, an oracle for what the stand-ins do."""

from __future__ import annotations

from typing import Any

import torch

from taylorseer import CacheConfig
from tests.support.recursion import Recursion


class ReferenceForecast:
    """TaylorSeer on the plain pipeline: a hook swaps the block stack's output for the recursion's forecast. The blocks
    run at every step, and what they give at forecast steps is thrown away."""

    def __init__(self, module: torch.nn.Module, config: CacheConfig, num_steps: int, calls: int) -> None:
        self.full = config.full_steps(num_steps)
        self.recursions = [Recursion(config.order, config.warmup_steps) for _ in range(calls)]
        self.calls = 0
        self.handle = module.register_forward_pre_hook(self.swap)

    def swap(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> Any:
        step, branch = divmod(self.calls, len(self.recursions))
        self.calls += 1
        recursion = self.recursions[branch]
        if step in self.full:
            recursion.full(step, arguments[0].double())
        return recursion.forecast(step).float(), *arguments[1:]
