"""The coordinate that forecasts extrapolate along: the step index, the noise, or the logarithm of signal to noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

NoiseLevel = tuple[float, float]  # (signal, noise): latents = signal * clean + noise * gaussian


def step_positions(coordinate: str, noise_levels: Sequence[NoiseLevel]) -> tuple[float, ...]:
    """Where each step of a run lies along a coordinate.

    Positions are scaled like step indices, from 0 at the first step to the number of steps - 1 at the last, so that
    predictors with a fixed scale (hermite) behave alike along every coordinate.

    Args:
        coordinate: a name in `COORDINATES`.
        noise_levels: (signal, noise) at the beginning of each step, both at least 0 and not both 0.

    Returns:
        float, one for each step, ascending. The logarithm of a level without signal or without noise is infinite; that
        step is placed as far from its neighbour as the neighbour is from the next.

    Raises:
        ValueError: an unknown coordinate, or the noise does not fall at each step, as with solvers that call the
            transformer several times a step.
    """
    if coordinate not in COORDINATES:
        raise ValueError(f"coordinate is {coordinate!r}, must be one of: {', '.join(COORDINATES)}")
    last = len(noise_levels) - 1
    raw = [float(i) for i in range(last + 1)]
    if coordinate in _ALONG:
        raw = _without_ends([_ALONG[coordinate](signal, noise) for signal, noise in noise_levels])
        if not all(a < b for a, b in pairwise(raw)):
            raise ValueError(f"coordinate is {coordinate!r}, must be 'step': here the noise does not always fall")
    return tuple(last * (each - raw[0]) / (raw[-1] - raw[0]) for each in raw) if last > 0 else (0.0,)


def _without_ends(raw: list[float]) -> list[float]:
    if len(raw) < 3:
        return [float(i) for i in range(len(raw))]
    first = raw[0] if math.isfinite(raw[0]) else 2 * raw[1] - raw[2]
    last = raw[-1] if math.isfinite(raw[-1]) else 2 * raw[-2] - raw[-3]
    return [first, *raw[1:-1], last]


def _signal_share(signal: float, noise: float) -> float:
    return signal / (signal + noise)


def _log_snr(signal: float, noise: float) -> float:
    if signal == 0:
        return -math.inf
    return math.inf if noise == 0 else math.log(signal / noise)


_ALONG: dict[str, Callable[[float, float], float]] = {
    "sigma": _signal_share,  # 1 - sigma where signal and noise make up 1, as in flow matching
    "log_snr": _log_snr,
}
COORDINATES = ("step", *_ALONG)
