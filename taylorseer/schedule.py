"""Which steps are full: the settings of a cache and the fixed schedule that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from taylorseer.predictors import MAX_ORDER, PREDICTORS

SCHEDULES = ("interval", "even")
MAX_STEPS = 1000  # the longest schedule that diffusers' schedulers are trained for


def full_steps(num_steps: int, interval: int, warmup_steps: int = 3, cooldown_steps: int = 0) -> tuple[int, ...]:
    """The indices of the full steps of a run, ascending.

    A step is full if it belongs to the first `warmup_steps` or the last `cooldown_steps`, or if it is the `interval`-th
    step after the last full one. Step 0 is always full. The schedule of TaylorSeer (arXiv 2503.06923): 50 steps at
    interval 6 and warm-up 3 have 10 full steps.

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
        count: of the full steps; from 1, which is step 0 alone, to `num_steps`.
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
        predictor: a name in `taylorseer.PREDICTORS`.
        schedule: where the full steps lie: "interval", as `full_steps` has it; "even", as many spread evenly over the
            run, the first and the last step among them; or the steps themselves, as "0 4 9 13", from 0 on and
            ascending, of which those of the run are taken.
        max_error: None, or a positive number: the largest relative L2 distance between a forecast and what a full
            step computes in its place. A full step whose audit is above it halves the interval, one at or below it
            lengthens it by one step, within 1 and `interval`.

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

    def __post_init__(self) -> None:
        _check_int("interval", self.interval, 1, MAX_STEPS)
        _check_int("order", self.order, 0, MAX_ORDER)
        _check_int("warmup_steps", self.warmup_steps, 0, MAX_STEPS)
        _check_int("cooldown_steps", self.cooldown_steps, 0, MAX_STEPS)
        if self.predictor not in PREDICTORS:
            raise ValueError(f"predictor is {self.predictor!r}, must be one of: {', '.join(PREDICTORS)}")
        if self.schedule not in SCHEDULES:
            _check_steps(self.schedule)
        if self.max_error is not None and not (math.isfinite(self.max_error) and self.max_error > 0):
            raise ValueError(f"max_error is {self.max_error}, must be a finite number above 0")

    @property
    def enabled(self) -> bool:
        """False where every step is full and nothing needs to be kept."""
        return self.interval > 1

    def full_steps(self, num_steps: int) -> tuple[int, ...]:
        """The full steps of a run of `num_steps` steps, ascending.

        With `max_error` these are the fewest; audits can only add to them.
        """
        if self.schedule not in SCHEDULES and self.enabled:
            return tuple(step for step in map(int, self.schedule.split()) if step < num_steps)
        steps = full_steps(num_steps, self.interval, self.warmup_steps, self.cooldown_steps)
        return even_steps(num_steps, len(steps)) if self.schedule == "even" else steps

    @property
    def first_anchor_step(self) -> int:
        """Anchors of earlier steps are not used by forecasts.

        TaylorSeer takes differences only from step warmup - 1 on, so no older anchor than warmup - 2 is read: older
        ones are of the wild first steps. Where full steps are spread, or given, all of them are used.
        """
        return self.warmup_steps - 2 if self.schedule == "interval" else 0


def _check_steps(text: str) -> None:
    steps = [int(each) if each.isdecimal() else -1 for each in text.split()]
    if not steps or steps[0] != 0 or any(b <= a for a, b in pairwise(steps)) or steps[-1] >= MAX_STEPS:
        raise ValueError(
            f"schedule is {text!r}, must be one of: {', '.join(SCHEDULES)}, or steps from 0 on, ascending, below "
            f"{MAX_STEPS}, as '0 4 9 13'"
        )


def _check_int(name: str, value: int, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise ValueError(f"{name} is {value!r}, must be {allowed}")
