"""Learnt weights: which anchors a row weighs, how rows pass to runs of other lengths, and when none is used."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from taylorseer import CacheConfig, CacheSession, LearntRun, LearntWeights, StepKind, forecast_weights
from taylorseer.learnt import FALLBACK

FULL, STEPS = (0, 2, 5, 9), 12
# Row s - 1 is of step s: any numbers, one for each of the newest anchors, three at most.
ROWS = tuple(
    tuple(round(math.sin(7 * step + 3 * place) + (place == 0), 3) for place in range(min(3, bisect_left(FULL, step))))
    for step in range(1, STEPS)
)
RUN = LearntRun(STEPS, FULL, ROWS)
SCHEDULE = "0 2 5 9 of 12"


def config_of(*runs: LearntRun, **settings: Any) -> CacheConfig:
    learnt = LearntWeights(runs or (RUN,))
    return CacheConfig(
        **{"predictor": "learnt", "schedule": SCHEDULE, "learnt": learnt, "order": learnt.order} | settings
    )


def features_of(num_steps: int) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {step: torch.randn(3, 4, generator=generator, dtype=torch.float64).float() for step in range(num_steps)}


def forecasts(session: CacheSession, features: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Runs all steps of a branch and returns the forecasts."""
    made = {}
    for step in range(session.num_steps):
        if session.kind(step, "cond") is StepKind.FULL:
            session.write(step, "cond", features[step])
        else:
            made[step] = session.forecast(step, "cond")
    return made


def weighed(features: Mapping[int, torch.Tensor], anchors: Sequence[int], weights: Sequence[float]) -> torch.Tensor:
    """A sum of anchors, in float64."""
    return sum(
        (weight * features[step].double() for step, weight in zip(anchors, weights, strict=True)),
        start=torch.zeros(3, 4, dtype=torch.float64),
    )


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    # float32 sums of at most three terms, with weights below 3
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def chebyshev(anchors: Sequence[int], step: int) -> np.ndarray:
    weights = forecast_weights("chebyshev", 8, list(anchors), step)
    return weights / weights.sum()


def test_each_forecast_of_the_learnt_run_is_the_sum_of_the_anchors_with_its_row():
    features = features_of(STEPS)
    made = forecasts(CacheSession(config_of(), STEPS), features)
    assert sorted(made) == [1, 3, 4, 6, 7, 8, 10, 11]
    for step, found in made.items():
        anchors = [each for each in FULL if each < step][-len(ROWS[step - 1]) :]
        assert_same(found, weighed(features, anchors, ROWS[step - 1]))


def test_the_audit_of_a_full_step_is_of_the_forecast_with_its_row():
    features = features_of(STEPS)
    session = CacheSession(config_of(), STEPS)
    forecasts(session, features)
    audits = {record.step: record.audit for record in session.records if record.kind is StepKind.FULL}
    assert audits.pop(0) is None
    for step, audit in audits.items():
        anchors = [each for each in FULL if each < step][-len(ROWS[step - 1]) :]
        error = weighed(features, anchors, ROWS[step - 1]) - features[step].double()
        # norms of 12 numbers in float32
        assert audit == pytest.approx(float(error.norm() / features[step].double().norm()), rel=1e-5)
    assert list(audits) == [2, 5, 9]


def stretched_row(step: int, num_steps: int, full: Sequence[int]) -> tuple[list[int], np.ndarray]:
    """The anchors and the row of a step in a run of another length, derived once more.

    At each place of a segment, from 0 at its first full step to 1 at its last, the learnt rows differ from Chebyshev's
    by a correction: 0 at place 0, and linear between the steps, after the last forecast step constant.
    """
    segment = max(i for i, begin in enumerate(full) if begin < step)
    begin, end = full[segment], [*full, num_steps][segment + 1]
    learnt_begin, learnt_end = FULL[segment], [*FULL, STEPS][segment + 1]
    count = min(3, segment + 1)
    learnt_anchors, anchors = list(FULL[: segment + 1])[-count:], list(full[: segment + 1])[-count:]

    def correction(learnt_step: int) -> np.ndarray:
        if learnt_step == learnt_begin:
            return np.zeros(count)
        return np.array(ROWS[learnt_step - 1]) - chebyshev(learnt_anchors, learnt_step)

    if step == end:  # an audit
        return anchors, chebyshev(anchors, step) + correction(learnt_end)
    steps = range(learnt_begin, learnt_end)
    places = [(each - learnt_begin) / (learnt_end - learnt_begin) for each in steps]
    table = np.array([correction(each) for each in steps])
    place = (step - begin) / (end - begin)
    added = [np.interp(place, places, table[:, column]) for column in range(count)]
    return anchors, chebyshev(anchors, step) + added


@pytest.mark.parametrize(
    ("num_steps", "full"), [(23, (0, 4, 10, 18)), (17, (0, 3, 7, 13)), (8, (0, 1, 3, 6)), (13, (0, 2, 5, 10))]
)
def test_a_run_of_another_length_has_the_corrections_of_the_same_places(num_steps, full):
    config, features = config_of(), features_of(num_steps)
    assert config.full_steps(num_steps) == full
    session = CacheSession(config, num_steps)
    made = forecasts(session, features)
    assert len(made) == num_steps - 4
    for step, found in made.items():
        assert_same(found, weighed(features, *stretched_row(step, num_steps, full)))
    audits = {record.step: record.audit for record in session.records if record.kind is StepKind.FULL}
    for step in full[1:]:
        error = weighed(features, *stretched_row(step, num_steps, full)) - features[step].double()
        # norms of 12 numbers in float32
        assert audits[step] == pytest.approx(float(error.norm() / features[step].double().norm()), rel=1e-5)


def test_twice_the_steps_between_two_learnt_ones_halve_the_way_between_their_corrections():
    """By hand: 23 steps have 4 and 10 where 12 have 2 and 5, so step 7 lies halfway between the learnt 3 and 4."""
    anchors, row = config_of().learnt.for_run(23, (0, 4, 10, 18)).rows[7]
    assert anchors == (0, 4)
    halves = (np.array(ROWS[2]) - chebyshev((0, 2), 3) + ROWS[3] - chebyshev((0, 2), 4)) / 2
    assert row == pytest.approx(chebyshev((0, 4), 7) + halves, rel=1e-12)  # float64


def test_rows_come_from_the_nearest_number_of_steps_by_ratio():
    short = LearntRun(4, (0, 1, 2, 3), ((1.5,), (1.0, 2.0), (0.5, 1.0, 2.0)))
    both = config_of(RUN, short).learnt
    # 6 / 4 = 1.5 and 12 / 6 = 2; 7 / 4 = 1.75 and 12 / 7 = 1.71, though 7 is 3 from 4 and 5 from 12
    for num_steps, nearest in ((4, short), (6, short), (7, RUN), (STEPS, RUN), (40, RUN)):
        full = config_of().full_steps(num_steps)
        assert both.for_run(num_steps, full) == LearntWeights((nearest,)).for_run(num_steps, full), num_steps
    assert both.order == 2


def test_after_an_added_full_step_steps_fall_back_until_a_row_finds_its_anchors_again():
    """Full steps 0 4 8 12 of 16, and the audit at 4 adds step 5. The rows of steps 9 to 12 weigh 4 and 8, which the
    ring of three still has beside 5; those of 13 on weigh 4, 8 and 12, of which the ring has lost 4."""
    rows = tuple((1.0,) if step < 5 else (2.0, -1.5) if step < 13 else (0.3, -0.9, 1.7) for step in range(1, 16))
    run = LearntRun(16, (0, 4, 8, 12), rows)
    config = config_of(run, schedule="0 4 8 12 of 16", max_error=1e-6, max_full_steps=5)
    features = features_of(16)
    session = CacheSession(config, 16)
    made = forecasts(session, features)
    assert session.full_steps == (0, 4, 5, 8, 12)
    for step in (6, 7):
        assert_same(made[step], weighed(features, (0, 4, 5), chebyshev((0, 4, 5), step)))
    for step in (9, 10, 11):
        assert_same(made[step], weighed(features, (4, 8), (2.0, -1.5)))
    for step in (13, 14, 15):
        assert_same(made[step], weighed(features, (5, 8, 12), chebyshev((5, 8, 12), step)))


def test_a_branch_whose_anchors_are_missing_falls_back():
    """It begins at step 5, as guidance that is switched on in the middle does; rows of one anchor fit it."""
    features = features_of(STEPS)
    session = CacheSession(config_of(), STEPS)
    for step in (5, 9):
        assert session.kind(step, "late") is StepKind.FULL
        session.write(step, "late", features[step])
    assert len(ROWS[9]) == 3, "the row needs step 2, which this branch has not computed"
    assert_same(session.forecast(10, "late"), weighed(features, (5, 9), chebyshev((5, 9), 10)))


def test_what_the_noise_of_a_run_is_makes_no_difference():
    features = features_of(STEPS)
    made = forecasts(CacheSession(config_of(), STEPS, [(0.9, 0.1)] * STEPS), features)
    expected = forecasts(CacheSession(config_of(), STEPS), features)
    assert all(torch.equal(made[step], expected[step]) for step in expected)


def test_a_run_with_fewer_steps_than_full_steps_has_no_rows():
    session = CacheSession(config_of(), 3)
    assert session.learnt.rows == {}
    assert forecasts(session, features_of(3)) == {}


def test_a_session_that_begins_again_has_the_rows_of_its_new_length():
    session, features = CacheSession(config_of(), 23), features_of(23)
    forecasts(session, features)
    session.begin(STEPS)
    made, fresh = forecasts(session, features), forecasts(CacheSession(config_of(), STEPS), features)
    assert all(torch.equal(made[step], fresh[step]) for step in fresh)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learnt": None}, "predictor is 'learnt', must be one of: taylor, .*; learnt weights come with a preset"),
        ({"order": 3}, "order is 3, must be 2, which the weights were learnt for; with another predictor it can be"),
        ({"schedule": "0 2 6 9 of 12"}, "must have the full steps 0 2 5 9 of 12, which the weights were learnt for"),
        ({"schedule": "interval"}, "schedule is 'interval', must have the full steps 0 2 5 9 of 12"),
        ({"schedule": "0 2 5 9 11"}, "schedule is '0 2 5 9 11', must have the full steps 0 2 5 9 of 12"),
    ],
)
def test_settings_that_the_weights_were_not_learnt_for_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        config_of(**settings)


def test_the_cache_off_and_another_predictor_leave_the_weights_aside():
    config, features = config_of(), features_of(STEPS)
    off = replace(config, interval=1)
    taylor = replace(config, predictor="taylor", order=3, schedule="0 1 2 8 of 12")
    assert forecasts(CacheSession(off, STEPS), features) == {}
    plain = CacheConfig(order=3, schedule="0 1 2 8 of 12")
    session = CacheSession(taylor, STEPS)
    assert session.learnt is None
    made, expected = forecasts(session, features), forecasts(CacheSession(plain, STEPS), features)
    assert all(torch.equal(made[step], expected[step]) for step in expected)


def test_without_its_weights_a_config_has_the_predictor_that_they_fall_back_to():
    config = config_of(max_error=0.1, interval=7)
    assert config.without_learnt() == CacheConfig(7, 2, predictor=FALLBACK, max_error=0.1, schedule=SCHEDULE)
    assert CacheConfig().without_learnt() == CacheConfig()
    made = forecasts(CacheSession(config_of().without_learnt(), STEPS), features := features_of(STEPS))
    weights = forecast_weights("chebyshev", 2, [2, 5, 9], 10)  # a plain predictor's: their sum is not 1
    assert_same(made[10], weighed(features, (2, 5, 9), weights.tolist()))


def test_configs_are_hashed_by_their_weights():
    other = config_of(replace(RUN, rows=(*ROWS[:-1], tuple(9.0 for _ in ROWS[-1]))))
    assert len({config_of(), config_of(LearntRun(STEPS, FULL, tuple(map(tuple, ROWS)))), other}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full_steps": (1, 2)}, r"full_steps is \[1, 2\], must ascend from 0 and stay below 12"),
        ({"full_steps": ()}, r"full_steps is \[\], must ascend from 0"),
        ({"full_steps": (0, 5, 5)}, r"full_steps is \[0, 5, 5\], must ascend from 0"),
        ({"full_steps": (0, 12)}, r"full_steps is \[0, 12\], must ascend from 0 and stay below 12"),
        ({"rows": ROWS[:-1]}, "rows has 10 entries, must have 11, one a step from 1 on"),
        ({"rows": ((), *ROWS[1:])}, r"row of step 1 is \[\], must be 1 to 1 finite numbers, not all 0"),
        ({"rows": ((1.0, 2.0), *ROWS[1:])}, r"row of step 1 is \[1.0, 2.0\], must be 1 to 1 finite"),
        ({"rows": (*ROWS[:-1], (1.0,) * 5)}, r"row of step 11 is .*, must be 1 to 4 finite numbers"),
        ({"rows": (*ROWS[:-1], (math.nan,))}, r"row of step 11 is \[nan\], must be 1 to 4 finite numbers"),
        ({"noise": 0.0}, "noise is 0.0, must be a finite number above 0"),
        ({"noise": math.inf}, "noise is inf, must be a finite number above 0"),
        ({"rows": (*ROWS[:-1], (0.0, 0.0))}, r"row of step 11 is \[0.0, 0.0\], must be .*, not all 0"),
    ],
)
def test_numbers_that_do_not_fit_together_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        LearntRun(**{"num_steps": STEPS, "full_steps": FULL, "rows": ROWS} | change)


def test_no_row_weighs_more_anchors_than_a_cache_can_keep():
    full = tuple(range(12))
    LearntRun(13, full, (*((1.0,),) * 11, (1.0,) * 9))
    with pytest.raises(ValueError, match=r"row of step 12 is .*, must be 1 to 9 finite numbers"):
        LearntRun(13, full, (*((1.0,),) * 11, (1.0,) * 10))


@pytest.mark.parametrize("runs", [(), (RUN, RUN)])
def test_weights_have_one_run_of_each_number_of_steps(runs):
    with pytest.raises(ValueError, match=r"runs has the numbers of steps .*, must be at least one, each once"):
        LearntWeights(runs)


def test_a_run_of_a_single_step_has_nothing_to_learn():
    with pytest.raises(ValueError, match="num_steps is 1, must be at least 2"):
        LearntRun(1, (0,), ())


def test_rows_of_one_segment_have_as_many_weights():
    with pytest.raises(ValueError, match=r"row of step 4 is \[1.0\], must have as many numbers as that of step 3"):
        LearntRun(5, (0, 2), ((1.0,), (1.0,), (0.5, 0.5), (1.0,)))


def shifted(num_steps: int, shift: float) -> list[tuple[float, float]]:
    """(signal, noise) of flow matching: noise over signal is `shift` times that of evenly spread sigmas."""
    odds = [shift * (1 - step / num_steps) / (step / num_steps) if step else math.inf for step in range(num_steps)]
    return [(0.0, 1.0) if each == math.inf else (1 / (1 + each), each / (1 + each)) for each in odds]


@pytest.mark.parametrize(("shift", "ratio"), [(3.0, 1.0), (1.5, 0.5), (6.0, 2.0)])
def test_a_run_knows_how_its_noise_compares(shift, ratio):
    learnt = config_of(replace(RUN, noise=3.0))
    session = CacheSession(learnt, STEPS, shifted(STEPS, shift))
    assert session.learnt.noise_ratio == pytest.approx(ratio, rel=1e-12)
    assert learnt.needs_noise


def test_noise_that_is_not_known_is_not_compared():
    plain = config_of()
    assert not plain.needs_noise
    assert CacheSession(plain, STEPS, shifted(STEPS, 1.0)).learnt.noise_ratio is None
    known = config_of(replace(RUN, noise=3.0))
    assert not known.without_learnt().needs_noise
    for levels in (None, [], [(0.0, 1.0)] * STEPS, [(1.0, 0.0)] * STEPS, [(-1.0, 2.0)] * STEPS):
        assert CacheSession(known, STEPS, levels).learnt.noise_ratio is None
