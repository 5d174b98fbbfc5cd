"""Schedules that meet a deadline, or that shorten the queue."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from plugin.errors import DeadlineCannotBeMet
from plugin.request import GenerationRequest, StretchedBy
from plugin.serving.costs import CostModel
from taylorseer import SCHEDULES

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
    request: GenerationRequest,
    costs: CostModel,
    wait_s: float,
    largest_interval: int,
    *,
    alone: bool = False,
    added: int = 0,
) -> GenerationRequest:
    """The request with the smallest interval, its own or a larger one, that lets it meet its deadline.

    A request whose cache is off keeps it off. One with an error budget has its audits add fewer full steps before its
    interval is stretched. Where nothing is known of its size yet it is left as it is. Takes some microseconds, whatever
    is asked for: it runs in the thread that accepts requests.

    Args:
        request: the valid request.
        costs: what requests cost.
        wait_s: how long it will wait before it runs.
        largest_interval: the largest that the model allows.
        alone: whether no other request runs.
        added: full steps that may come on top of the cache's schedule, as a second expert's first.

    Raises:
        DeadlineCannotBeMet: not even the largest interval would do.
    """
    known = None if request.deadline_ms is None else costs.of(request, alone=alone)
    if known is None or request.deadline_ms is None:
        return request
    num_steps = request.num_steps
    allowed = known.most_full_steps((request.deadline_ms / 1000 - wait_s) / _MARGIN, num_steps)
    if allowed < num_steps:
        allowed -= added
    own = request.cache.interval
    largest = max(own, largest_interval) if request.cache.enabled else own
    if request.cache.num_full_steps(num_steps) <= allowed:
        return _with_at_most(request, allowed)
    if own < largest and _count(request, largest) <= allowed:
        intervals = range(own + 1, largest + 1)
        interval = intervals[bisect_left(intervals, -allowed, key=lambda each: -_count(request, each))]
        return _with_at_most(_stretched(request, interval, StretchedBy.DEADLINE), allowed)
    seconds = known.seconds(min(num_steps, _count(request, largest) + added), num_steps)
    needed_s = wait_s + _MARGIN * seconds
    raise DeadlineCannotBeMet(
        f"DEADLINE: deadline_ms is {request.deadline_ms}, must be at least {1000 * needed_s:.0f} for now: "
        f"{1000 * wait_s:.0f} ms in the queue and {1000 * seconds:.0f} ms of work with cache_interval {largest}"
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


def _count(request: GenerationRequest, interval: int) -> int:
    """The fewest full steps of the request with an interval; fewer with a larger one."""
    return _stretched(request, interval, StretchedBy.DEADLINE).cache.num_full_steps(request.num_steps)


def _with_at_most(request: GenerationRequest, full: int) -> GenerationRequest:
    """The request whose audits add no full step beyond that many; its schedule has fewer."""
    if request.cache.most_full_steps(request.num_steps) <= full:
        return request
    return replace(request, cache=replace(request.cache, max_full_steps=full))


def _stretched(request: GenerationRequest, interval: int, reason: StretchedBy) -> GenerationRequest:
    """With another interval; full steps that were given are replaced by as many as it has, spread evenly. Weights
    that were learnt for those steps go with them."""
    if interval == request.cache.interval:
        return request
    schedule = request.cache.schedule if request.cache.schedule in SCHEDULES else "even"
    cache = replace(request.cache.without_learnt(), interval=interval, schedule=schedule)
    return replace(request, cache=cache, stretched_by=reason)
