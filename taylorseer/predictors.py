"""Forecasts as weights over raw anchors: a predictor is one function of step numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]

MAX_ORDER = 8


def forecast_weights(predictor: str, order: int, anchor_steps: Sequence[int], step: int) -> Weights:
    """The weight of each anchor in the forecast of a step: forecast = sum_j weights[j] * F(anchor_steps[j]).

    TaylorSeer's recursion is linear in the features, so the weights depend on step numbers alone and every predictor
    shares the same memory and the same weighted sum.

    Args:
        predictor: a name in `PREDICTORS`.
        order: O, 0 to 8. Only the newest O+1 anchors are used, older ones get weight 0; while there are fewer, the
            order ramps: it is the number of anchors - 1.
        anchor_steps: the step indices of the anchors, oldest first, all different; they may count up or down.
        step: the step index to forecast.

    Returns:
        float64 array (number of anchors,), oldest first, whose sum is 1.

    Raises:
        ValueError: an unknown predictor, an order out of range, no anchors, or a step that occurs twice.
    """
    if predictor not in PREDICTORS:
        raise ValueError(f"predictor is {predictor!r}, must be one of: {', '.join(PREDICTORS)}")
    if not 0 <= order <= MAX_ORDER:
        raise ValueError(f"order is {order}, must be from 0 to {MAX_ORDER}")
    if not anchor_steps:
        raise ValueError("anchor_steps is empty, must hold at least one step")
    if len(set(anchor_steps)) != len(anchor_steps):
        raise ValueError(f"anchor_steps is {list(anchor_steps)}, must hold each step once")
    used = list(anchor_steps)[-(order + 1) :]
    weights = np.zeros(len(anchor_steps))
    weights[-len(used) :] = PREDICTORS[predictor](np.asarray(used, dtype=np.float64), float(step))
    return weights


def _reuse(anchor_steps: Weights, step: float) -> Weights:
    """The newest anchor as it is, whatever the order."""
    weights = np.zeros(len(anchor_steps))
    weights[-1] = 1.0
    return weights


def _taylor(anchor_steps: Weights, step: float) -> Weights:
    """TaylorSeer (arXiv 2503.06923, eq. 3 and 4): sum_i D_i k^i / i!, D_i a difference of D_{i-1} over one gap.

    D_{i+1}(s_n) = (D_i(s_n) - D_i(s_{n-1})) / (s_n - s_{n-1}). Row n of `differences` holds D_i(s_n) as coefficients
    over the anchors; each round drops the oldest row, for which no older D_i exists.
    """
    offset = step - anchor_steps[-1]
    gaps = np.diff(anchor_steps)  # (A-1,) signed, so steps that count down need nothing else
    differences = np.eye(len(anchor_steps))  # (A, A)
    weights = differences[-1].copy()
    for i in range(1, len(anchor_steps)):
        differences = (differences[1:] - differences[:-1]) / gaps[i - 1 :, None]  # (A-i, A)
        weights += differences[-1] * offset**i / math.factorial(i)
    return weights


PREDICTORS: dict[str, Callable[[Weights, float], Weights]] = {"taylor": _taylor, "reuse": _reuse}
