"""TaylorSeer's recursion written out (arXiv 2503.06923), an oracle that knows no weights and no anchors."""

from __future__ import annotations

import math
from typing import Any


class Recursion:
    """Differences of one tensor (or number), updated at full steps.

    D_0 = F(s_n); D_{i+1}(s_n) = (D_i(s_n) - D_i(s_{n-1})) / (s_n - s_{n-1}) if D_i(s_{n-1}) exists and i < order;
    forecast at s_n + k: sum_i D_i k^i / i!. Differences are taken only from step warmup - 1 on.
    """

    def __init__(self, order: int, warmup_steps: int = 0) -> None:
        self.order = order
        self.warmup_steps = warmup_steps
        self.differences: list[Any] = []
        self.step = 0

    def full(self, step: int, feature: Any) -> None:
        older, gap = self.differences, step - self.step
        self.differences = [feature]
        if step >= self.warmup_steps - 1:
            for i in range(min(self.order, len(older))):
                self.differences.append((self.differences[i] - older[i]) / gap)
        self.step = step

    def forecast(self, step: int) -> Any:
        k = step - self.step
        return sum(difference * k**i / math.factorial(i) for i, difference in enumerate(self.differences))
