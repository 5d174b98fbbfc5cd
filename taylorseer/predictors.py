"""Forecasts as weights over raw anchors: a predictor is one function of step numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev, hermite

Weights = npt.NDArray[np.float64]

MAX_ORDER = 8
_HERMITE_SIGMA = 0.5
_CHEBYSHEV_COEFFICIENTS = 4
_CHEBYSHEV_RIDGE = 0.1
_SPECTRUM_MIX = 0.5
_FOCA_ANCHORS = 3


def forecast_weights(predictor: str, order: int, anchor_steps: Sequence[float], step: float) -> Weights:
    """The weight of each anchor in the forecast of a step: forecast = sum_j weights[j] * F(anchor_steps[j]).

    TaylorSeer's recursion is linear in the features, so the weights depend on step numbers alone and every predictor
    shares the same memory and the same weighted sum.

    Args:
        predictor: a name in `PREDICTORS`.
        order: O, 0 to 8. Only the newest O+1 anchors are used; older ones get weight 0. While there are fewer, the
            order is the number of anchors - 1.
        anchor_steps: the step indices of the anchors, or their positions along another coordinate, oldest first, all
            different; they may count up or down.
        step: the step index to forecast, or its position.

    Returns:
        float64 array (number of anchors,), oldest first. Its sum is 1, except for chebyshev and spectrum.

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
    """The newest anchor as it is, at any order."""
    weights = np.zeros(len(anchor_steps))
    weights[-1] = 1.0
    return weights


def _taylor(anchor_steps: Weights, step: float) -> Weights:
    """TaylorSeer (arXiv 2503.06923, eq. 3 and 4): sum_i D_i k^i / i!, D_i a difference of D_{i-1} over one gap.

    D_{i+1}(s_n) = (D_i(s_n) - D_i(s_{n-1})) / (s_n - s_{n-1}). Row n of `differences` holds D_i(s_n) as coefficients
    over the anchors; each round drops the oldest row, for which no older D_i exists.
    """
    return _expansion(anchor_steps, step, lambda i, offset: offset**i)


def _hermite(anchor_steps: Weights, step: float) -> Weights:
    """HiCache (arXiv 2508.16984): Taylor's recursion with k^i replaced by sigma^i H_i(sigma k), H_i the physicists'
    Hermite polynomial and sigma 0.5. At order 1 it is Taylor with its slope halved."""
    return _expansion(
        anchor_steps,
        step,
        lambda i, offset: _HERMITE_SIGMA**i * hermite.hermval(_HERMITE_SIGMA * offset, [0.0] * i + [1.0]),
    )


def _expansion(anchor_steps: Weights, step: float, power: Callable[[int, float], float]) -> Weights:
    """sum_i D_i power(i, k) / i!, k steps from the newest anchor, as weights."""
    offset = step - anchor_steps[-1]
    gaps = np.diff(anchor_steps)  # (A-1,) signed, so steps may count down
    differences = np.eye(len(anchor_steps))  # (A, A)
    weights = differences[-1].copy()
    for i in range(1, len(anchor_steps)):
        differences = (differences[1:] - differences[:-1]) / gaps[i - 1 :, None]  # (A-i, A)
        weights += differences[-1] * power(i, offset) / math.factorial(i)
    return weights


def _newton(anchor_steps: Weights, step: float) -> Weights:
    """The interpolating polynomial through all anchors, by Lagrange's weights: exact on polynomials up to the order."""
    weights = np.ones(len(anchor_steps))
    for j, own in enumerate(anchor_steps):
        others = np.delete(anchor_steps, j)
        weights[j] = np.prod((step - others) / (own - others))
    return weights


def _chebyshev(anchor_steps: Weights, step: float) -> Weights:
    """Spectrum (arXiv 2603.01623): Chebyshev polynomials up to degree 3, fitted to the anchors by ridge regression and
    evaluated at the step; anchors and step are mapped to [-1, 1]. The penalty shrinks the forecast a little, so the sum
    of the weights is not 1.

    Spectrum fits all anchors so far. Here only the last O+1 are kept, so it needs a high order. With fewer than four
    anchors, the degree is their number - 1.
    """
    coefficients = min(_CHEBYSHEV_COEFFICIENTS, len(anchor_steps))
    positions = np.append(anchor_steps, step)
    span = positions.max() - positions.min()
    scaled = 2 * (positions - positions.min()) / span - 1 if span else np.zeros_like(positions)
    basis = chebyshev.chebvander(scaled, coefficients - 1)  # (A+1, M)
    fitted, read = basis[:-1], basis[-1]
    penalised = fitted.T @ fitted + _CHEBYSHEV_RIDGE * np.eye(coefficients)
    return np.linalg.solve(penalised, read) @ fitted.T


def _spectrum(anchor_steps: Weights, step: float) -> Weights:
    """Spectrum with the mix of its authors' published code: w times `chebyshev` plus 1 - w times the line through the
    two newest anchors, w = 0.5.

    The paper (arXiv 2603.01623) has no w. The README of the code, github.com/hanjq17/Spectrum, adds the mix after
    publication, recommends 0.5 to 1 and has 0.5 in its commands; at 1 it is `chebyshev`. With one anchor the line is
    its value.
    """
    weights = _SPECTRUM_MIX * _chebyshev(anchor_steps, step)
    weights[-2:] += (1 - _SPECTRUM_MIX) * _newton(anchor_steps[-2:], step)
    return weights


def _foca(anchor_steps: Weights, step: float) -> Weights:
    """FoCa (arXiv 2508.16211, eq. 6 to 8): a BDF2 forecast, then Heun's correction, over the newest three anchors.

    With F0, F1, F2 the newest anchors, F2 the last, and h the distance to the step, at equal spacing h:

        D = (3 F2 - 4 F1 + F0) / 2h                         eq. 6 at the newest anchor: the derivative by BDF2
        B = 4/3 F2 - 1/3 F1 + 2/3 h D                       eq. 7: the forecast by BDF2
        forecast = F2 + h/2 (D + (B - F2) / h)              eq. 8: Heun's mean of two slopes

    The equations are as zhuanlan.zhihu.com/p/1952056591068144338 quotes and explains them, for equal spacing. Four
    things are choices here. Other spacings use the coefficients of BDF2 with a variable step. A forecast is one step
    of length h from the newest anchor, where that explanation goes on step by step and counts forecasts as history. The
    derivative at the newest anchor is eq. 6 over anchors. The slope at the step is the secant to B, as explained there:
    eq. 6 at the step would return D, since B solves it, and the correction would change nothing.

    The second difference acts as a correction of the slope, so its part grows as h and not as h^2. The step must lie
    beyond the newest anchor. With two anchors the forecast is the line through them, with one its value.
    """
    if len(anchor_steps) < _FOCA_ANCHORS:
        return _newton(anchor_steps, step)
    weights = np.zeros(len(anchor_steps))
    oldest, middle, newest = np.eye(_FOCA_ANCHORS)  # (3,) each: the weights that read one anchor
    first_gap, gap = np.diff(anchor_steps[-_FOCA_ANCHORS:])
    ahead = step - anchor_steps[-1]
    ratio, next_ratio = gap / first_gap, ahead / gap  # of each gap to the one before it
    slope = ((1 + 2 * ratio) * newest - (1 + ratio) ** 2 * middle + ratio**2 * oldest) / ((1 + ratio) * gap)
    bdf2 = (1 + next_ratio) ** 2 * newest - next_ratio**2 * middle + (1 + next_ratio) * ahead * slope
    bdf2 /= 1 + 2 * next_ratio
    weights[-_FOCA_ANCHORS:] = (newest + ahead * slope + bdf2) / 2  # eq. 8, multiplied out
    return weights


PREDICTORS: dict[str, Callable[[Weights, float], Weights]] = {
    "taylor": _taylor,
    "reuse": _reuse,
    "newton": _newton,
    "hermite": _hermite,
    "chebyshev": _chebyshev,
    "spectrum": _spectrum,
    "foca": _foca,
}
