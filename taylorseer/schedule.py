"""Which steps are full: the settings of a cache and the fixed schedule that follows from them."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise

from taylorseer.coordinates import COORDINATES
from taylorseer.learnt import FALLBACK, LEARNT, LearntWeights
from taylorseer.predictors import MAX_ORDER, PREDICTORS

SCHEDULES = ("interval", "even")
MAX_STEPS = 1000  # the longest schedule that diffusers' schedulers are trained for


def full_steps(num_steps: int, interval: int, warmup_steps: int = 3, cooldown_steps: int = 0) -> tuple[int, ...]:
    """The indices of the full steps of a run, ascending.

    A step is full if it belongs to the first `warmup_steps` or the last `cooldown_steps`, or if it is the `interval`-th
    step after the last full one. Step 0 is always full. This is the schedule of TaylorSeer (arXiv 2503.06923): 50
    steps at interval 6 and warm-up 3 have 10 full steps.

    Args:
        num_steps: steps of the run, at least 1.
        interval: N, at least 1; 1 makes every step full (the cache is off).
        warmup_steps: at least 0.
        cooldown_steps: at least 0.

    Raises:
        ValueError: an argument is out of its range; the message names it, its value and the range.
    """
    _check_int("num_steps", num_steps, 1)
    _check_int("interval", interval, 1)
    _check_int("warmup_steps", warmup_steps, 0)
    _check_int("cooldown_steps", cooldown_steps, 0)
    full = [0]
    for step in range(1, num_steps):
        if step < warmup_steps or step - full[-1] >= interval or step >= num_steps - cooldown_steps:
            full.append(step)
    return tuple(full)


def even_steps(num_steps: int, count: int) -> tuple[int, ...]:
    """The indices of full steps that are spread evenly over a run, the first and the last step among them.

    Args:
        num_steps: steps of the run, at least 1.
        count: the number of full steps, from 1 (step 0 alone) to `num_steps`.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_int("num_steps", num_steps, 1)
    _check_int("count", count, 1, num_steps)
    return tuple(round(i * (num_steps - 1) / max(1, count - 1)) for i in range(count))


@dataclass(frozen=True)
class CacheConfig:
    """The cache settings of one request.

    Attributes:
        interval: N, 1 to 1000: every N-th step after the warm-up is full; 1 turns the cache off.
        order: O, 0 to 8: a forecast uses at most the last O+1 anchors.
        warmup_steps: 0 to 1000: the first steps, all full.
        cooldown_steps: 0 to 1000: the last steps, all full.
        predictor: a name in `taylorseer.PREDICTORS`, or "learnt": the weights in `learnt`.
        schedule: where the full steps lie: "interval", as `full_steps` returns them; "even", the same number spread
            evenly over the run, the first and the last step among them; or the steps themselves, ascending from 0, as
            "0 4 9 13". Steps beyond the run are ignored. "0 4 9 13 of 14" was chosen for 14 steps; a run of another
            length gets as many full steps at the same proportions.
        coordinate: what forecasts extrapolate along, a name in `taylorseer.COORDINATES`.
        max_error: None, or a positive number: the target for the relative L2 distance between forecast and computed
            features. Each full step measures it (its audit) and places the next full step, `min_interval` to
            `interval` steps later. The full steps of the schedule stay.
        min_interval: 1 to 1000, with max_error: the shortest distance between full steps that an audit asks for.
        max_full_steps: None, or 1 to 1000, with max_error: audits add no full step once the run has this many. The full
            steps of the schedule are never left out.
        learnt: the weights of predictor "learnt", which belong to one order and one schedule; None without them.

    Raises:
        ValueError: a field is out of its range; the message names field, value and range.
    """

    interval: int = 5
    order: int = 1
    warmup_steps: int = 3
    cooldown_steps: int = 0
    predictor: str = "taylor"
    max_error: float | None = None
    schedule: str = "interval"
    coordinate: str = "step"
    min_interval: int = 1
    max_full_steps: int | None = None
    learnt: LearntWeights | None = None

    def __post_init__(self) -> None:
        _check_int("interval", self.interval, 1, MAX_STEPS)
        _check_int("order", self.order, 0, MAX_ORDER)
        _check_int("warmup_steps", self.warmup_steps, 0, MAX_STEPS)
        _check_int("cooldown_steps", self.cooldown_steps, 0, MAX_STEPS)
        if self.schedule not in SCHEDULES:
            _given_steps(self.schedule)
        self._check_predictor()
        if self.coordinate not in COORDINATES:
            raise ValueError(f"coordinate is {self.coordinate!r}, must be one of: {', '.join(COORDINATES)}")
        _check_int("min_interval", self.min_interval, 1, MAX_STEPS)
        if self.max_full_steps is not None:
            _check_int("max_full_steps", self.max_full_steps, 1, MAX_STEPS)
        if self.max_error is not None and not (math.isfinite(self.max_error) and self.max_error > 0):
            raise ValueError(f"max_error is {self.max_error}, must be a finite number above 0")

    def _check_predictor(self) -> None:
        if self.predictor != LEARNT:
            if self.predictor not in PREDICTORS:
                raise ValueError(f"predictor is {self.predictor!r}, must be one of: {', '.join(PREDICTORS)}")
            return
        if self.learnt is None:
            raise ValueError(
                f"predictor is 'learnt', must be one of: {', '.join(PREDICTORS)}; learnt weights come with a preset "
                "that `triton-taylorseer tune` has made"
            )
        if self.order != self.learnt.order:
            raise ValueError(
                f"order is {self.order}, must be {self.learnt.order}, which the weights were learnt for; with another "
                "predictor it can be chosen"
            )
        for run in self.learnt.runs:
            if self._steps_of_run(run.num_steps) != run.full_steps:
                raise ValueError(
                    f"schedule is {self.schedule!r}, must have the full steps {' '.join(map(str, run.full_steps))} of "
                    f"{run.num_steps}, which the weights were learnt for; with another predictor it can be chosen"
                )

    def without_learnt(self) -> CacheConfig:
        """The same settings, with the predictor that learnt weights fall back to in their place."""
        return replace(self, predictor=FALLBACK, learnt=None) if self.predictor == LEARNT else self

    @property
    def enabled(self) -> bool:
        """False if every step is full and nothing needs to be kept."""
        return self.interval > 1

    @property
    def needs_noise(self) -> bool:
        """Whether a run's noise levels matter: a coordinate other than "step", or weights learnt at known ones."""
        learnt = self.learnt is not None and self.predictor == LEARNT and self.learnt.knows_noise
        return self.coordinate != "step" or learnt

    def full_steps(self, num_steps: int) -> tuple[int, ...]:
        """The full steps of a run of `num_steps` steps, ascending.

        With `max_error`, audits may add to them; see `most_full_steps`.
        """
        if self.enabled:
            return self._steps_of_run(num_steps)
        return tuple(range(num_steps))

    def _steps_of_run(self, num_steps: int) -> tuple[int, ...]:
        """The steps of the schedule, whether the cache is on or off."""
        if self.schedule not in SCHEDULES:
            steps, of = _given_steps(self.schedule)
            if of is None:
                return tuple(step for step in steps if step < num_steps)
            return _in_proportion(steps, of, num_steps)
        steps = full_steps(num_steps, self.interval, self.warmup_steps, self.cooldown_steps)
        return even_steps(num_steps, len(steps)) if self.schedule == "even" else steps

    def num_full_steps(self, num_steps: int) -> int:
        """How many `full_steps` returns, without walking the run."""
        if self.schedule not in SCHEDULES and self.enabled:
            steps, of = _given_steps(self.schedule)
            return bisect_left(steps, num_steps) if of is None else min(len(steps), num_steps)
        first = min(max(self.warmup_steps, 1), num_steps)
        last = min(self.cooldown_steps, num_steps - first)
        return first + (num_steps - first - last) // self.interval + last

    def most_full_steps(self, num_steps: int) -> int:
        """The largest number of full steps of a run of `num_steps` steps: those of the schedule, and with `max_error`
        those that audits may add."""
        fewest = self.num_full_steps(num_steps)
        if self.max_error is None:
            return fewest
        return min(num_steps, max(fewest, self.max_full_steps or num_steps))

    @property
    def first_anchor_step(self) -> int:
        """Anchors of earlier steps are not used by forecasts.

        TaylorSeer takes differences only from step warmup - 1 on, so it reads no anchor older than warmup - 2: in the
        first steps features change too fast. With schedules other than "interval" all anchors are used.
        """
        return self.warmup_steps - 2 if self.schedule == "interval" else 0


SETTINGS = tuple(each.name for each in fields(CacheConfig) if each.name != "learnt")  # what a text can hold


def _in_proportion(steps: tuple[int, ...], of: int, num_steps: int) -> tuple[int, ...]:
    """The steps nearest to the same proportions of a run of another length: as many, if the run is long enough."""
    count = min(len(steps), num_steps)
    placed: list[int] = []
    for number, step in enumerate(steps[:count]):
        nearest = round(step * (num_steps - 1) / max(1, of - 1))
        after = placed[-1] + 1 if placed else 0
        placed.append(min(max(nearest, after), num_steps - count + number))  # leaves room for the rest
    return tuple(placed)


@lru_cache(maxsize=64)  # a request's settings are copied and read many times
def _given_steps(text: str) -> tuple[tuple[int, ...], int | None]:
    """The steps of "0 4 9 13" or "0 4 9 13 of 14", and the length of the run that they were chosen for."""
    match = re.fullmatch(r"\s*((?:\d{1,4}\s+)*\d{1,4})(?:\s+of\s+(\d{1,4}))?\s*", text, re.ASCII)
    steps = tuple(map(int, match[1].split())) if match else ()
    of = int(match[2]) if match and match[2] else None
    beyond = MAX_STEPS if of is None else min(MAX_STEPS, of)
    if not steps or steps[0] != 0 or any(b <= a for a, b in pairwise(steps)) or steps[-1] >= beyond:
        raise ValueError(
            f"schedule is {text!r}, must be one of: {', '.join(SCHEDULES)}, or steps from 0 on, ascending, below "
            f"{beyond}, as '0 4 9 13' or '0 4 9 13 of 14'"
        )
    return steps, of


def _check_int(name: str, value: int, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise ValueError(f"{name} is {value!r}, must be {allowed}")
