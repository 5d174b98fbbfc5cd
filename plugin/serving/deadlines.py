"""What requests cost, learnt from those that have ended, and the schedules that meet a deadline or shorten a line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from plugin.errors import DeadlineCannotBeMet
from plugin.request import GenerationRequest, StretchedBy
from taylorseer import SCHEDULES, CacheConfig

_NEW = 0.3  # weight of the latest request in the averages
_MARGIN = 1.1  # of the expected time: averages are passed half of the time


@dataclass(frozen=True)
class Costs:
    """Seconds of a request's parts: a full step, a forecast step, and all else together."""

    full_s: float
    forecast_s: float
    rest_s: float


@dataclass(frozen=True)
class LoadPolicy:
    """How far the intervals of requests that begin are stretched while others wait: evenly from where the line is
    `from_waiting` long up to `largest_interval` where it is full.

    Attributes:
        from_waiting: at least 1; 0 for never.
        max_waiting: the longest line.
        largest_interval: the model's least quality.
    """

    from_waiting: int
    max_waiting: int
    largest_interval: int


class CostModel:
    """What requests of each size have cost: moving averages, and the least; used by any thread.

    They are taken from whole requests among others, so the waiting for turns at the engine is in the averages. A
    request that will be alone is judged by the least: the averages of a rush hour would refuse it, and nothing would
    correct them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._average: dict[tuple[object, ...], Costs] = {}
        self._least: dict[tuple[object, ...], Costs] = {}

    def observe(self, request: GenerationRequest, steps: Sequence[tuple[str, float]], worked_s: float) -> None:
        """Takes in a request that has ended well.

        Args:
            request: it.
            steps: kind ("full" or "forecast") and seconds of each step.
            worked_s: seconds from the start of the work to the end.
        """
        full, forecast = ([seconds for kind, seconds in steps if kind == wanted] for wanted in ("full", "forecast"))
        if not full:
            return
        full_s = sum(full) / len(full)
        rest_s = max(0.0, worked_s - sum(full) - sum(forecast))
        with self._lock:
            key = _key(request)
            before = self._average.get(key)
            forecast_s = sum(forecast) / len(forecast) if forecast else before.forecast_s if before else full_s
            latest = Costs(full_s, forecast_s, rest_s)
            self._average[key] = _each(lambda old, new: (1 - _NEW) * old + _NEW * new, before or latest, latest)
            self._least[key] = _each(min, self._least.get(key, latest), latest)

    def seconds(self, request: GenerationRequest, *, alone: bool = False) -> float | None:
        """What a request is expected to take once it is worked on, with all full steps that audits may add; None before
        one of its size has ended.

        Args:
            request: it.
            alone: whether no other is worked on.
        """
        with self._lock:
            costs = (self._least if alone else self._average).get(_key(request))
        if costs is None:
            return None
        full = request.cache.most_full_steps(request.num_inference_steps)
        return costs.rest_s + full * costs.full_s + (request.num_inference_steps - full) * costs.forecast_s


def meet_deadline(
    request: GenerationRequest, costs: CostModel, wait_s: float, largest_interval: int, *, alone: bool = False
) -> GenerationRequest:
    """The request with the smallest interval, its own or a larger one, that lets it meet its deadline.

    A request whose cache is off keeps it off. One with an error budget has its audits add fewer full steps before its
    interval is stretched. Where nothing is known of its size yet it is left as it is.

    Args:
        request: the valid request.
        costs: what requests cost.
        wait_s: how long it will wait before it is worked on.
        largest_interval: the model's least quality.
        alone: whether no other request is worked on.

    Raises:
        DeadlineCannotBeMet: not even the largest interval would do.
    """
    if request.deadline_ms is None or costs.seconds(request) is None:
        return request
    allowed_s = request.deadline_ms / 1000
    own = request.cache.interval
    for interval in (own,) if not request.cache.enabled else range(own, max(own, largest_interval) + 1):
        candidate = _stretched(request, interval, StretchedBy.DEADLINE)
        for cache in _fewer_additions(candidate):
            seconds = costs.seconds(replace(candidate, cache=cache), alone=alone) or 0.0
            needed_s = wait_s + _MARGIN * seconds
            if needed_s <= allowed_s:
                return replace(candidate, cache=cache)
    raise DeadlineCannotBeMet(
        f"DEADLINE: deadline_ms is {request.deadline_ms}, must be at least {1000 * needed_s:.0f} for now: "
        f"{1000 * wait_s:.0f} ms in line and {1000 * seconds:.0f} ms of work with cache_interval {interval}"
    )


def shorten_line(request: GenerationRequest, policy: LoadPolicy, waiting: int) -> GenerationRequest:
    """The request with the interval that the policy gives it while so many others wait.

    A request whose cache is off keeps it off.
    """
    own, beyond = request.cache.interval, waiting - policy.from_waiting + 1
    if not policy.from_waiting or beyond <= 0 or not request.cache.enabled:
        return request
    share = min(1.0, beyond / max(1, policy.max_waiting - policy.from_waiting + 1))
    return _stretched(request, max(own, round(own + share * (policy.largest_interval - own))), StretchedBy.LOAD)


def _fewer_additions(request: GenerationRequest) -> Iterator[CacheConfig]:
    """The request's cache settings, and the same with ever fewer full steps that audits may add."""
    cache, num_steps = request.cache, request.num_inference_steps
    yield cache
    if cache.max_error is not None:
        fewest = len(cache.full_steps(num_steps))
        for most in range(cache.most_full_steps(num_steps) - 1, fewest - 1, -1):
            yield replace(cache, max_full_steps=most)


def _stretched(request: GenerationRequest, interval: int, reason: StretchedBy) -> GenerationRequest:
    """With another interval; full steps that were given give way to as many as it has, spread evenly."""
    if interval == request.cache.interval:
        return request
    schedule = request.cache.schedule if request.cache.schedule in SCHEDULES else "even"
    cache = replace(request.cache, interval=interval, schedule=schedule)
    return replace(request, cache=cache, stretched_by=reason)


def _key(request: GenerationRequest) -> tuple[object, ...]:
    guided = request.guidance_scale > 1, request.negative_prompt is not None
    return request.height, request.width, request.num_frames, *guided


def _each(of: Callable[[float, float], float], one: Costs, other: Costs) -> Costs:
    return Costs(of(one.full_s, other.full_s), of(one.forecast_s, other.forecast_s), of(one.rest_s, other.rest_s))
