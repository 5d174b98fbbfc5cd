"""Forecast weights that were learnt for one model: for each step of a run, a row of weights over the anchors."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from taylorseer.coordinates import NoiseLevel
from taylorseer.predictors import MAX_ORDER, Weights, forecast_weights

LEARNT = "learnt"  # the predictor's name
FALLBACK = "chebyshev"  # the predictor of steps that no learnt row is for

Row = tuple[float, ...]


@dataclass(frozen=True)
class LearntRun:
    """The rows of one number of steps.

    Attributes:
        num_steps: of the run, at least 2.
        full_steps: the indices of its full steps, ascending from 0.
        rows: of each step from 1 on, the weights of the newest anchors before it, oldest first. A forecast step uses
            its row; the row of a full step is for its audit.
        noise: over signal at the beginning of the middle step, as `middle_noise` gives it; None where nobody knows it.

    Raises:
        ValueError: the numbers do not fit together; the message says which.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    rows: tuple[Row, ...]
    noise: float | None = None

    def __post_init__(self) -> None:
        full = self.full_steps
        if self.num_steps < 2:
            raise ValueError(f"num_steps is {self.num_steps}, must be at least 2")
        if not full or full[0] != 0 or any(a >= b for a, b in pairwise(full)) or full[-1] >= self.num_steps:
            raise ValueError(f"full_steps is {list(full)}, must ascend from 0 and stay below {self.num_steps}")
        if self.noise is not None and not 0 < self.noise < math.inf:
            raise ValueError(f"noise is {self.noise}, must be a finite number above 0")
        if len(self.rows) != self.num_steps - 1:
            raise ValueError(f"rows has {len(self.rows)} entries, must have {self.num_steps - 1}, one a step from 1 on")
        for step, row in enumerate(self.rows, 1):
            most = min(MAX_ORDER + 1, bisect_left(full, step))
            if not 1 <= len(row) <= most or not all(map(math.isfinite, row)) or not any(row):
                raise ValueError(f"row of step {step} is {list(row)}, must be 1 to {most} finite numbers, not all 0")
            if step - 1 not in (0, *full) and len(row) != len(self.rows[step - 2]):
                raise ValueError(
                    f"row of step {step} is {list(row)}, must have as many numbers as that of step {step - 1}"
                )

    def anchors(self, step: int) -> tuple[int, ...]:
        """The steps of the anchors that the row of a step weighs, oldest first."""
        before = bisect_left(self.full_steps, step)
        return self.full_steps[before - len(self.rows[step - 1]) : before]


@dataclass(frozen=True)
class LearntWeights:
    """What was learnt for a model and a schedule: a run of the number of steps it was learnt at, and of others.

    Attributes:
        runs: at least one; the first has the number of steps that the schedule was chosen for.
        fingerprint: of the model's weights; see `plugin.denoising.fingerprint`.

    Raises:
        ValueError: no run, or two of the same number of steps.
    """

    runs: tuple[LearntRun, ...]
    fingerprint: str = ""

    def __post_init__(self) -> None:
        lengths = [each.num_steps for each in self.runs]
        if not lengths or len({*lengths}) != len(lengths):
            raise ValueError(f"runs has the numbers of steps {lengths}, must be at least one, each once")

    @property
    def order(self) -> int:
        """The order that a cache needs so that it keeps all anchors that the rows weigh."""
        return max(len(row) for run in self.runs for row in run.rows) - 1

    @property
    def knows_noise(self) -> bool:
        """Whether a run's noise can be compared with that of a learnt one."""
        return any(run.noise is not None for run in self.runs)

    def for_run(self, num_steps: int, full_steps: Sequence[int], noise_levels: Sequence[NoiseLevel] = ()) -> RunWeights:
        """The rows of a run.

        Those of its own number of steps, if they were learnt. Otherwise the nearest number's: what a row adds to
        `FALLBACK`'s weights is interpolated between neighbouring steps of the same segment, from one full step to the
        next, and added to the weights that `FALLBACK` has in this run.

        Args:
            num_steps: of the run.
            full_steps: its planned full steps.
            noise_levels: (signal, noise) at the beginning of each step; none if they are not known.

        Returns:
            No rows at all where the run has fewer full steps than the schedule.
        """
        nearest = min(self.runs, key=lambda run: abs(math.log(run.num_steps / num_steps)))
        if len(full_steps) != len(nearest.full_steps):
            return RunWeights({})
        noise = middle_noise(noise_levels)
        ratio = noise / nearest.noise if noise and nearest.noise else None
        return RunWeights(_rows_of(nearest, num_steps, tuple(full_steps)), ratio)


@dataclass(frozen=True)
class RunWeights:
    """The learnt rows of one run.

    Attributes:
        rows: by step: the steps of the anchors and their weights, oldest first.
        noise_ratio: noise over signal at the middle step, over what it was where the rows were learnt; None where one
            of them is not known.
    """

    rows: Mapping[int, tuple[tuple[int, ...], Row]]
    noise_ratio: float | None = None

    def weights(self, anchor_steps: Sequence[int], step: int) -> Row | None:
        """One weight for each anchor, oldest first; 0 for those that the row does not know.

        Returns:
            None where no row is for these anchors: an anchor of the row is missing, or one was added since its newest.
        """
        anchors, row = self.rows.get(step, ((), ()))
        if not anchors or not anchor_steps or anchor_steps[-1] != anchors[-1] or not {*anchors} <= {*anchor_steps}:
            return None
        known = dict(zip(anchors, row, strict=True))
        return tuple(known.get(each, 0.0) for each in anchor_steps)


def middle_noise(noise_levels: Sequence[NoiseLevel]) -> float | None:
    """Noise over signal at the beginning of the middle step of a run, which tells a scheduler's shift.

    Args:
        noise_levels: (signal, noise) at the beginning of each step.

    Returns:
        None where the run has no such step, or nothing but signal or noise there.
    """
    signal, noise = noise_levels[len(noise_levels) // 2] if noise_levels else (0.0, 0.0)
    return noise / signal if signal > 0 and noise > 0 else None


def fallback_weights(order: int, anchor_steps: Sequence[float], step: float) -> Weights:
    """The weights of `FALLBACK`, scaled so that their sum is 1: what it shrinks, no learnt row has to undo.

    Args:
        order, anchor_steps, step: as `taylorseer.forecast_weights` has them.
    """
    weights = forecast_weights(FALLBACK, order, anchor_steps, step)
    return weights / weights.sum()


@lru_cache(maxsize=64)
def _rows_of(run: LearntRun, num_steps: int, full_steps: tuple[int, ...]) -> dict[int, tuple[tuple[int, ...], Row]]:
    rows = {}
    for step in range(1, num_steps):
        if (num_steps, full_steps) == (run.num_steps, run.full_steps):
            rows[step] = run.anchors(step), run.rows[step - 1]
            continue
        segment = bisect_left(full_steps, step) - 1  # begins with the step's newest anchor
        added = _added(run, segment, _place(full_steps, num_steps, segment, step))
        anchors = full_steps[segment + 1 - len(added) : segment + 1]
        rows[step] = anchors, tuple((fallback_weights(MAX_ORDER, anchors, step) + added).tolist())
    return rows


def _place(full_steps: Sequence[int], num_steps: int, segment: int, step: int) -> float:
    """Where a step lies in its segment: above 0 at the full step that begins it, 1 at the one that ends it."""
    begin, end = _ends(full_steps, num_steps, segment)
    return (step - begin) / (end - begin)


def _ends(full_steps: Sequence[int], num_steps: int, segment: int) -> tuple[int, int]:
    return full_steps[segment], full_steps[segment + 1] if segment + 1 < len(full_steps) else num_steps


def _added(run: LearntRun, segment: int, place: float) -> Weights:
    """What the rows add to `FALLBACK` at a place of a segment; nothing at the full step that begins it."""
    begin, end = _ends(run.full_steps, run.num_steps, segment)

    def at(step: int) -> Weights:
        if step == begin:
            count = len(run.rows[begin]) if begin < run.num_steps - 1 else 1
            return np.zeros(count)
        anchors = run.anchors(step)
        return np.asarray(run.rows[step - 1]) - fallback_weights(MAX_ORDER, anchors, step)

    if place == 1 and end < run.num_steps:
        return at(end)  # the row of an audit
    position = min(begin + place * (end - begin), end - 1)
    low = math.floor(position)
    share = position - low
    return (1 - share) * at(low) + share * at(low + 1) if share else at(low)
