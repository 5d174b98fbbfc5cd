"""What requests cost, and the schedule that meets a deadline."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from plugin.config import ModelConfig
from plugin.errors import DeadlineCannotBeMet
from plugin.paths import REPOSITORY
from plugin.request import GenerationRequest, StretchedBy
from plugin.serving.costs import CostModel
from plugin.serving.pacing import LoadPolicy, meet_deadline, shorten_queue
from taylorseer import CacheConfig

FULL_S, FORECAST_S, REST_S = 0.010, 0.001, 0.020


@pytest.fixture
def request_() -> GenerationRequest:
    """50 steps, interval 5, warm-up 3: 12 full ones."""
    defaults = ModelConfig.from_folder(REPOSITORY / "emoji_stream").defaults
    return replace(defaults, prompt="apple", cache=CacheConfig(interval=5, warmup_steps=3))


@pytest.fixture
def costs(request_) -> CostModel:
    """What one request of this size taught."""
    model = CostModel()
    model.observe(
        request_, [("full", FULL_S)] * 12 + [("forecast", FORECAST_S)] * 38, 12 * FULL_S + 38 * FORECAST_S + REST_S
    )
    return model


def seconds(full: int) -> float:
    return REST_S + full * FULL_S + (50 - full) * FORECAST_S


def test_the_cost_of_another_schedule_is_told_from_the_steps(costs, request_):
    assert costs.seconds(request_) == pytest.approx(seconds(12))
    off = replace(request_, cache=replace(request_.cache, interval=1))
    assert costs.seconds(off) == pytest.approx(seconds(50))
    assert costs.seconds(replace(request_, height=128)) is None


def test_costs_follow_what_is_seen(costs, request_):
    for _ in range(30):
        costs.observe(request_, [("full", 2 * FULL_S)] * 12, 12 * 2 * FULL_S + REST_S)
    off = replace(request_, cache=replace(request_.cache, interval=1))
    assert costs.seconds(off) == pytest.approx(REST_S + 50 * 2 * FULL_S, rel=0.01)


def test_a_rush_hour_does_not_refuse_who_is_alone_after_it(costs, request_):
    for _ in range(30):
        costs.observe(request_, [("full", 50 * FULL_S)] * 12 + [("forecast", FORECAST_S)] * 38, 12 * 50 * FULL_S + 1)
    urgent = replace(request_, deadline_ms=int(1100 * seconds(12)) + 1)
    assert meet_deadline(urgent, costs, 0.0, 10, alone=True).cache.interval == 5
    with pytest.raises(DeadlineCannotBeMet):
        meet_deadline(urgent, costs, 0.0, 10)


def test_the_interval_is_the_smallest_that_meets_the_deadline(costs, request_):
    def interval(deadline_ms: int, wait_s: float = 0.0) -> int:
        return meet_deadline(replace(request_, deadline_ms=deadline_ms), costs, wait_s, 10).cache.interval

    generous = 1000 * 1.1 * seconds(12)
    assert interval(int(generous) + 1) == 5
    assert interval(int(generous) - 1) == 6
    # interval 6 has 10 full steps, 7 has 9, 8 and 9 have 8, 10 has 7
    assert interval(int(1000 * 1.1 * seconds(10)) - 1) == 7
    assert interval(int(1000 * 1.1 * seconds(7)) + 1) == 10
    assert interval(int(generous) + 101, wait_s=0.1) == 5
    assert interval(int(generous) + 99, wait_s=0.1) == 6


def test_a_second_expert_s_first_step_is_left_room_for(costs, request_):
    def interval(full: int, cache_interval: int = 5) -> int:
        cache = replace(request_.cache, interval=cache_interval)
        urgent = replace(request_, cache=cache, deadline_ms=int(1100 * seconds(full)) + 1)
        return meet_deadline(urgent, costs, 0.0, 10, added=1).cache.interval

    assert (interval(13), interval(12)) == (5, 6), "interval 5 has 12 full steps, and one more"
    assert interval(50, cache_interval=1) == 1, "all steps are full: none can be added"
    with pytest.raises(DeadlineCannotBeMet, match=f"and {1000 * seconds(8):.0f} ms of work with cache_interval 10"):
        interval(7)


def test_given_steps_give_way_to_even_ones_where_the_interval_is_stretched(costs, request_):
    given = replace(request_, cache=replace(request_.cache, schedule="0 4 9 13 18 22 27 31 36 40 45 48 of 50"))
    same = meet_deadline(replace(given, deadline_ms=int(1100 * seconds(12)) + 1), costs, 0.0, 10)
    assert same.cache == given.cache
    stretched = meet_deadline(replace(given, deadline_ms=int(1100 * seconds(10)) + 1), costs, 0.0, 10)
    assert (stretched.cache.interval, stretched.cache.schedule) == (6, "even")
    assert len(stretched.cache.full_steps(50)) == 10


def test_a_deadline_takes_the_additions_of_an_error_budget_before_it_stretches_the_interval(costs, request_):
    adaptive = replace(request_, cache=replace(request_.cache, max_error=0.1))
    assert costs.seconds(adaptive) == pytest.approx(seconds(50)), "all steps may become full"

    def met(full: int) -> tuple[int, int | None]:
        cache = meet_deadline(replace(adaptive, deadline_ms=int(1100 * seconds(full)) + 1), costs, 0.0, 10).cache
        return cache.interval, cache.max_full_steps

    assert met(50) == (5, None)
    assert met(20) == (5, 20)
    assert met(12) == (5, 12)
    assert met(10) == (6, 10)


def test_what_cannot_be_met_is_refused_with_what_would_be_needed(costs, request_):
    with pytest.raises(
        DeadlineCannotBeMet, match=r"deadline_ms is 50, must be at least \d+ for now: 30 ms in the queue"
    ):
        meet_deadline(replace(request_, deadline_ms=50), costs, 0.03, 10)


def test_nothing_is_stretched_without_need(costs, request_):
    assert meet_deadline(request_, costs, 100.0, 10) is request_, "no deadline"
    unknown = replace(request_, height=128, deadline_ms=1)
    assert meet_deadline(unknown, costs, 0.0, 10) is unknown, "nothing is known of its size"
    off = replace(request_, cache=replace(request_.cache, interval=1), deadline_ms=int(1100 * seconds(12)) + 1)
    with pytest.raises(DeadlineCannotBeMet):
        meet_deadline(off, costs, 0.0, 10)
    slow = replace(request_, cache=replace(request_.cache, interval=12), deadline_ms=10_000)
    assert meet_deadline(slow, costs, 0.0, 10).cache.interval == 12, "never below its own"


def test_intervals_grow_with_the_line_from_where_the_policy_begins_to_where_it_is_full(request_):
    policy = LoadPolicy(from_waiting=3, max_waiting=7, largest_interval=10)
    intervals = [shorten_queue(request_, policy, waiting).cache.interval for waiting in range(9)]
    assert intervals == [5, 5, 5, 6, 7, 8, 9, 10, 10]
    assert shorten_queue(request_, policy, 2).stretched_by is None
    assert shorten_queue(request_, policy, 3).stretched_by is StretchedBy.LOAD


def test_the_load_changes_nothing_where_the_cache_is_off_the_interval_is_large_or_there_is_no_policy(request_):
    policy = LoadPolicy(from_waiting=1, max_waiting=1, largest_interval=10)
    for cache in (replace(request_.cache, interval=1), replace(request_.cache, interval=12)):
        same = replace(request_, cache=cache)
        assert shorten_queue(same, policy, 1) is same
    assert shorten_queue(request_, LoadPolicy(0, 64, 10), 64) is request_


def test_what_a_deadline_has_stretched_is_stretched_further_by_the_load(costs, request_):
    urgent = meet_deadline(replace(request_, deadline_ms=int(1100 * seconds(9)) + 1), costs, 0.0, 10)
    assert urgent.stretched_by is StretchedBy.DEADLINE
    assert urgent.cache.interval > 5
    busy = shorten_queue(urgent, LoadPolicy(1, 1, 20), 1)
    assert (busy.cache.interval, busy.stretched_by) == (20, StretchedBy.LOAD)


def searched(request: GenerationRequest, costs: CostModel, wait_s: float, largest: int) -> tuple[int, int] | None:
    """Interval and most full steps by trying all of them, the best picture first; None where none will do."""
    assert request.deadline_ms is not None
    num_steps = request.num_inference_steps
    for interval in range(request.cache.interval, max(request.cache.interval, largest) + 1):
        given = request.cache.schedule in ("interval", "even") or interval == request.cache.interval
        schedule = request.cache.schedule if given else "even"
        cache = replace(request.cache, interval=interval, schedule=schedule)
        fewest = len(cache.full_steps(num_steps))
        most = fewest if cache.max_error is None else min(num_steps, max(fewest, cache.max_full_steps or num_steps))
        for full in range(most, fewest - 1, -1):
            if wait_s + 1.1 * (REST_S + full * FULL_S + (num_steps - full) * FORECAST_S) <= request.deadline_ms / 1000:
                return interval, full
        if not cache.enabled:
            return None
    return None


@pytest.mark.parametrize("max_error", [None, 1e-9])
@pytest.mark.parametrize("schedule", ["interval", "even", "0 4 9 13 18 22 27 31 36 40 45 48 of 50"])
def test_what_arithmetic_finds_is_what_a_search_finds(costs, request_, schedule, max_error):
    found = 0
    for num_steps in (1, 4, 50, 333):
        for interval, warmup in ((1, 0), (2, 3), (5, 3), (12, 60)):
            cache = CacheConfig(interval, warmup_steps=warmup, schedule=schedule, max_error=max_error)
            for deadline_ms in (1, 60, 100, 150, 199, 201, 400, 900, 5000):
                request = replace(request_, cache=cache, num_inference_steps=num_steps, deadline_ms=deadline_ms)
                expected = searched(request, costs, 0.01, 10)
                if expected is None:
                    with pytest.raises(DeadlineCannotBeMet):
                        meet_deadline(request, costs, 0.01, 10)
                    continue
                met = meet_deadline(request, costs, 0.01, 10)
                assert (met.cache.interval, met.cache.most_full_steps(num_steps)) == expected, request
                found += 1
    assert found > 20


def test_no_request_is_looked_at_for_long(costs, request_):
    """It would hold up all others: a search took 23 s for one of these."""
    steps = " ".join(map(str, range(999)))
    worst = 0.0
    for schedule in ("interval", "even", steps, f"{steps} of 1000"):
        for max_error in (None, 1e-9):
            for interval, warmup in ((2, 0), (2, 1000), (1000, 0)):
                cache = CacheConfig(interval, 8, warmup, 0, schedule=schedule, max_error=max_error)
                request = replace(request_, cache=cache, num_inference_steps=1000, deadline_ms=1)
                began = time.perf_counter()
                with pytest.raises(DeadlineCannotBeMet):
                    meet_deadline(request, costs, 0.0, 1000)
                worst = max(worst, time.perf_counter() - began)
    assert worst < 0.005
