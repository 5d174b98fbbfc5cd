"""The fixed schedules, against the counts that the paper's ratios imply and the rule written out."""

from itertools import pairwise

import pytest

from taylorseer import SCHEDULES, CacheConfig, even_steps, full_steps


@pytest.mark.parametrize(
    ("interval", "warmup", "count"),
    # DiT N3/4/5, FLUX N4/5/6/7, HunyuanVideo and Wan N5, HiDream N4: full steps of 50 (arXiv 2503.06923)
    [(3, 2, 18), (4, 2, 14), (5, 2, 11), (4, 3, 14), (5, 3, 12), (6, 3, 10), (7, 3, 9), (5, 1, 10), (4, 1, 13)],
)
def test_paper_settings_give_the_papers_full_steps(interval, warmup, count):
    """The warm-up, then every N-th step counted from its last one, as a range says it."""
    steps = full_steps(50, interval, warmup_steps=warmup)
    assert steps == (*range(warmup), *range(warmup - 1 + interval, 50, interval))
    assert len(steps) == count


def test_schedule_of_flux_is_spelt_out():
    assert full_steps(50, 6, warmup_steps=3) == (0, 1, 2, 8, 14, 20, 26, 32, 38, 44)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_interval_1_makes_every_step_full(num_steps):
    assert full_steps(num_steps, 1, warmup_steps=0) == tuple(range(num_steps))


def test_step_0_is_full_without_a_warmup():
    assert full_steps(9, 4, warmup_steps=0) == (0, 4, 8)


def test_cooldown_makes_the_last_steps_full():
    assert full_steps(20, 5, warmup_steps=2, cooldown_steps=3) == (0, 1, 6, 11, 16, 17, 18, 19)


def test_warmup_beyond_the_run_makes_every_step_full():
    assert full_steps(4, 5, warmup_steps=100) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5), "num_steps is 0, must be an integer of at least 1"),
        ((10, 0), "interval is 0, must be an integer of at least 1"),
        ((10, 5, -1), "warmup_steps is -1, must be an integer of at least 0"),
        ((10, 5, 0, -2), "cooldown_steps is -2, must be an integer of at least 0"),
        ((10.0, 5), "num_steps is 10.0, must be an integer"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        full_steps(*arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interval": 0}, "interval is 0, must be an integer from 1 to 1000"),
        ({"order": -1}, "order is -1, must be an integer from 0 to 8"),
        ({"order": 9}, "order is 9, must be an integer from 0 to 8"),
        ({"order": True}, "order is True"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"cooldown_steps": 1001}, "cooldown_steps is 1001"),
        ({"predictor": "magic"}, "predictor is 'magic', must be one of: taylor, reuse, newton"),
        ({"max_error": 0.0}, "max_error is 0.0, must be a finite number above 0"),
        ({"max_error": float("nan")}, "max_error is nan"),
        ({"min_interval": 0}, "min_interval is 0, must be an integer from 1 to 1000"),
        ({"max_full_steps": 0}, "max_full_steps is 0, must be an integer from 1 to 1000"),
    ],
)
def test_bad_config_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        CacheConfig(**fields)


def test_config_is_frozen_and_gives_its_schedule():
    config = CacheConfig(interval=6, warmup_steps=3)
    assert config.full_steps(50) == full_steps(50, 6, 3)
    with pytest.raises(AttributeError):
        config.interval = 2  # type: ignore[misc]


def test_an_even_schedule_is_spelt_out():
    assert even_steps(50, 12) == (0, 4, 9, 13, 18, 22, 27, 31, 36, 40, 45, 49)
    assert even_steps(50, 1) == (0,)
    assert even_steps(50, 2) == (0, 49)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 28, 50])
def test_even_steps_are_as_many_as_asked_from_the_first_to_the_last_and_hardly_differ_in_distance(num_steps):
    for count in range(1, num_steps + 1):
        steps = even_steps(num_steps, count)
        gaps = {b - a for a, b in pairwise(steps)}
        assert len(set(steps)) == count
        assert steps[0] == 0
        assert count == 1 or steps[-1] == num_steps - 1
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("interval", [1, 2, 5, 9])
def test_an_even_schedule_costs_what_the_same_settings_cost_by_interval(interval):
    for num_steps in (1, 7, 50):
        by_interval, even = (CacheConfig(interval, schedule=name).full_steps(num_steps) for name in SCHEDULES)
        assert len(even) == len(by_interval)


def test_given_steps_are_taken_as_far_as_the_run_goes():
    cache = CacheConfig(schedule="0 3 9 20")
    assert cache.full_steps(50) == (0, 3, 9, 20)
    assert cache.full_steps(10) == (0, 3, 9)
    assert CacheConfig(interval=1, schedule="0 3").full_steps(5) == (0, 1, 2, 3, 4), "off is off"


def test_steps_of_another_run_lie_in_proportion():
    cache = CacheConfig(schedule="0 2 9 of 10")
    assert cache.full_steps(10) == (0, 2, 9)
    assert cache.full_steps(19) == (0, 4, 18)
    assert cache.full_steps(4) == (0, 1, 3)
    assert cache.full_steps(2) == (0, 1)
    assert cache.full_steps(1) == (0,)
    crowded = CacheConfig(schedule="0 1 2 8 9 of 10")
    assert crowded.full_steps(5) == (0, 1, 2, 3, 4), "as many as there are"
    assert crowded.full_steps(6) == (0, 1, 2, 4, 5)
    even = " ".join(map(str, even_steps(50, 12)))
    assert CacheConfig(schedule=f"{even} of 50").full_steps(99) == tuple(2 * step for step in even_steps(50, 12))


def test_audits_add_full_steps_up_to_the_cap_or_to_all_of_them():
    assert CacheConfig(5, 1, 3).most_full_steps(50) == 12
    assert CacheConfig(5, 1, 3, max_full_steps=20).most_full_steps(50) == 12, "no audits count"
    assert CacheConfig(5, 1, 3, max_error=0.1).most_full_steps(50) == 50
    assert CacheConfig(5, 1, 3, max_error=0.1, max_full_steps=20).most_full_steps(50) == 20
    assert CacheConfig(5, 1, 3, max_error=0.1, max_full_steps=8).most_full_steps(50) == 12, "what is planned comes"


@pytest.mark.parametrize(
    "schedule",
    ["", "odd", "1 2", "0 4 4", "0 5 3", "0 -1", "0 1000", "0,4", "0 9 of 9", "0 of", "of 9", "0 3 of 5 of 6"],
)
def test_steps_that_are_no_schedule_are_named(schedule):
    with pytest.raises(ValueError, match=r"schedule is .*, must be one of: interval, even, or steps from 0 on"):
        CacheConfig(schedule=schedule)


@pytest.mark.parametrize("schedule", ["interval", "even", "0", "0 4 9 13", "0 4 9 13 of 14", "0 1 2 3 of 1000"])
def test_full_steps_are_counted_without_walking_the_run(schedule):
    for num_steps in (1, 2, 3, 7, 14, 50, 1000):
        for interval in (1, 2, 3, 5, 50, 1000):
            for warmup, cooldown in ((0, 0), (1, 0), (3, 0), (3, 2), (0, 5), (60, 60), (1000, 1000)):
                config = CacheConfig(interval, 1, warmup, cooldown, schedule=schedule)
                assert config.num_full_steps(num_steps) == len(config.full_steps(num_steps)), (config, num_steps)


@pytest.mark.parametrize("text", ["0 4 9 of 0", "0 " + "9" * 5000, "0 4 of " + "9" * 5000, "0 4 9 of 9", "0 12345"])
def test_a_schedule_of_absurd_numbers_is_refused_in_our_words(text):
    with pytest.raises(ValueError, match=r"^schedule is .*must be one of: interval, even, or steps from 0 on"):
        CacheConfig(schedule=text)
