"""Schedules that meet a deadline, or that shorten the queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from plugin.errors import DeadlineCannotBeMet
from plugin.request import GenerationRequest, StretchedBy
from plugin.serving.costs import CostModel
from taylorseer import SCHEDULES, CacheConfig

_MARGIN = 1.1  # of the expected time: half of all requests take longer than the average


@dataclass(frozen=True)
class LoadPolicy:
    """How far the intervals of requests that begin are stretched while others wait: evenly from where `from_waiting`
    are queued up to `largest_interval` where the queue is full.

    Attributes:
        from_waiting: at least 1; 0 for never.
        max_waiting: the most requests that may be queued.
        largest_interval: the largest interval, and so the lowest quality, that the model allows.
    """

    from_waiting: int
    max_waiting: int
    largest_interval: int


def meet_deadline(
    request: GenerationRequest, costs: CostModel, wait_s: float, largest_interval: int, *, alone: bool = False
) -> GenerationRequest:
    """The request with the smallest interval, its own or a larger one, that lets it meet its deadline.

    A request whose cache is off keeps it off. One with an error budget has its audits add fewer full steps before its
    interval is stretched. Where nothing is known of its size yet it is left as it is.

    Args:
        request: the valid request.
        costs: what requests cost.
        wait_s: how long it will wait before it runs.
        largest_interval: the largest that the model allows.
        alone: whether no other request runs.

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
        f"{1000 * wait_s:.0f} ms in the queue and {1000 * seconds:.0f} ms of work with cache_interval {interval}"
    )


def shorten_queue(request: GenerationRequest, policy: LoadPolicy, waiting: int) -> GenerationRequest:
    """The request with the interval that the policy gives it while `waiting` others are queued.

    A request whose cache is off keeps it off.
    """
    own, beyond = request.cache.interval, waiting - policy.from_waiting + 1
    if not policy.from_waiting or beyond <= 0 or not request.cache.enabled:
        return request
    share = min(1.0, beyond / max(1, policy.max_waiting - policy.from_waiting + 1))
    return _stretched(request, max(own, round(own + share * (policy.largest_interval - own))), StretchedBy.LOAD)


def _fewer_additions(request: GenerationRequest) -> Iterator[CacheConfig]:
    """The request's cache settings, and the same with fewer and fewer full steps that audits may add."""
    cache, num_steps = request.cache, request.num_inference_steps
    yield cache
    if cache.max_error is not None:
        fewest = len(cache.full_steps(num_steps))
        for most in range(cache.most_full_steps(num_steps) - 1, fewest - 1, -1):
            yield replace(cache, max_full_steps=most)


def _stretched(request: GenerationRequest, interval: int, reason: StretchedBy) -> GenerationRequest:
    """With another interval; full steps that were given are replaced by as many as it has, spread evenly."""
    if interval == request.cache.interval:
        return request
    schedule = request.cache.schedule if request.cache.schedule in SCHEDULES else "even"
    cache = replace(request.cache, interval=interval, schedule=schedule)
    return replace(request, cache=cache, stretched_by=reason)
