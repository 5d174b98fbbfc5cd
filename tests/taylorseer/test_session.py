"""One request's cache: what is full, which anchors count, what is recorded."""

import pytest
import torch

from taylorseer import CacheConfig, CacheSession, StepKind
from tests.support.recursion import Recursion


def run(session: CacheSession, features: dict[int, torch.Tensor], branch: str = "cond") -> dict[int, torch.Tensor]:
    """Runs all steps of a branch and returns what each one used."""
    used = {}
    for step in range(session.num_steps):
        if session.kind(step, branch) is StepKind.FULL:
            session.write(step, branch, features[step])
            used[step] = features[step]
        else:
            used[step] = session.forecast(step, branch)
    return used


def random_features(num_steps: int) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {step: torch.randn(3, 4, generator=generator) for step in range(num_steps)}


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize(("interval", "warmup"), [(5, 3), (4, 1), (3, 2), (6, 0)])
def test_run_equals_the_recursion(order, interval, warmup):
    config = CacheConfig(interval=interval, order=order, warmup_steps=warmup)
    features = random_features(30)
    used = run(CacheSession(config, 30), features)
    recursion = Recursion(order, warmup)
    for step in range(30):
        if step in config.full_steps(30):
            recursion.full(step, features[step])
        # float32 sums of at most four terms with weights below 10
        torch.testing.assert_close(used[step], recursion.forecast(step).float(), rtol=1e-5, atol=1e-5)


def test_full_steps_and_engine_calls_are_those_of_the_schedule():
    session = CacheSession(CacheConfig(interval=5, warmup_steps=3), 20)
    run(session, random_features(20))
    assert session.full_steps == (0, 1, 2, 7, 12, 17)
    assert session.engine_calls == 6
    assert [record.kind for record in session.records[:4]] == [StepKind.FULL] * 3 + [StepKind.FORECAST]


def test_cache_off_keeps_nothing():
    session = CacheSession(CacheConfig(interval=1), 5)
    run(session, random_features(5))
    assert session.nbytes == 0
    assert session.full_steps == (0, 1, 2, 3, 4)
    assert all(record.audit is None for record in session.records)


def test_branches_have_their_own_anchors():
    config = CacheConfig(interval=3, warmup_steps=1, predictor="reuse")
    session = CacheSession(config, 3)
    session.write(0, "cond", torch.tensor([1.0]))
    session.write(0, "uncond", torch.tensor([-1.0]))
    assert session.forecast(1, "cond").item() == 1.0
    assert session.forecast(1, "uncond").item() == -1.0
    assert session.nbytes == 2 * 2 * 4


def test_a_branch_that_starts_late_computes_its_first_step():
    session = CacheSession(CacheConfig(interval=4, warmup_steps=1), 8)
    session.write(0, "cond", torch.ones(2))
    assert session.kind(1, "cond") is StepKind.FORECAST
    assert session.kind(1, "uncond") is StepKind.FULL


def test_audit_is_the_relative_distance_of_forecast_and_feature():
    session = CacheSession(CacheConfig(interval=2, warmup_steps=1, predictor="reuse"), 5)
    session.write(0, "cond", torch.tensor([3.0, 4.0]))
    session.forecast(1, "cond")
    session.write(2, "cond", torch.tensor([6.0, 8.0]))
    assert session.records[-1].audit == pytest.approx(0.5)  # |(3,4) - (6,8)| / |(6,8)|
    assert session.records[0].audit is None


def test_clear_returns_the_memory_and_the_next_step_is_full():
    session = CacheSession(CacheConfig(interval=4, warmup_steps=1), 8)
    session.write(0, "cond", torch.ones(100))
    assert session.nbytes == 2 * 400
    session.clear()
    assert session.nbytes == 0
    assert session.kind(1, "cond") is StepKind.FULL


def test_max_error_adds_full_steps_where_forecasts_are_poor():
    wild, tame = random_features(40), {step: torch.full((4,), 1.0 + step) for step in range(40)}
    config = CacheConfig(interval=8, warmup_steps=2, max_error=0.05)
    sessions = [CacheSession(config, 40), CacheSession(config, 40)]
    for session, features in zip(sessions, (wild, tame), strict=True):
        run(session, features)
    planned = set(config.full_steps(40))
    assert planned < set(sessions[0].full_steps)
    assert set(sessions[1].full_steps) == planned


def test_steps_outside_the_run_are_refused():
    with pytest.raises(ValueError, match="step is 5, must be from 0 to 4"):
        CacheSession(CacheConfig(), 5).kind(5, "cond")


def audited(config: CacheConfig, num_steps: int, error_of_distance) -> CacheSession:
    """A run of order 0 whose forecasts are off by a given error, as it grows with the distance from the last anchor."""
    session = CacheSession(config, num_steps)
    last, value = 0, 1.0
    for step in range(num_steps):
        if session.kind(step, "cond") is StepKind.FULL:
            value = value / (1 - error_of_distance(step - last)) if step else value  # reuse is then off by this share
            session.write(step, "cond", torch.full((4,), value))
            last = step
        else:
            session.forecast(step, "cond")
    return session


def test_an_audit_chooses_the_next_full_step_as_solvers_choose_theirs():
    """Reuse, whose error grows with the distance: 2 % a step. A budget of 9 % is met 4 steps apart."""
    config = CacheConfig(10, 0, 1, max_error=0.09, schedule="0")
    full = audited(config, 40, lambda distance: 0.02 * distance).full_steps
    # step 10 is off by 20 %: 10 * 9 / 20 = 4.5, and 4 steps are within the budget: 4 * 9 / 8 = 4.5 again
    assert full == (0, 10, 14, 18, 22, 26, 30, 34, 38)


def test_the_distance_grows_at_most_twofold_and_stays_within_its_bounds():
    config = CacheConfig(12, 0, 1, max_error=0.5, schedule="0 1", min_interval=3)
    assert audited(config, 30, lambda distance: 1e-6).full_steps == (0, 1, 4, 10, 22)
    assert audited(config, 12, lambda distance: 0.9).full_steps == (0, 1, 4, 7, 10)


def test_audits_add_no_more_full_steps_than_the_cap_leaves():
    config = CacheConfig(8, 0, 1, cooldown_steps=1, max_error=1e-3, max_full_steps=9)
    session = audited(config, 40, lambda distance: 0.1)
    planned = config.full_steps(40)
    assert len(session.full_steps) == 9 == config.most_full_steps(40)
    assert set(planned) < set(session.full_steps)


def test_of_two_branches_the_worse_audit_decides():
    config = CacheConfig(9, 0, 1, max_error=0.11, schedule="0 6")
    session = CacheSession(config, 40)
    for step in range(40):
        for branch, error in (("cond", 0.3), ("uncond", 0.001)):
            if session.kind(step, branch) is StepKind.FULL:
                session.write(step, branch, torch.full((4,), 1.0 / (1 - error) if step else 1.0))
    assert session.full_steps[:3] == (0, 6, 8)


def test_a_branch_left_out_at_some_steps_forecasts_from_the_steps_of_its_own_anchors():
    """Guidance switched off for steps 6 to 12. Linear features, so that order 1 is exact from two anchors."""
    session = CacheSession(CacheConfig(interval=4, order=1, warmup_steps=1), 20)
    slopes = {"cond": 1.0, "uncond": -3.0}
    computed: dict[str, list[int]] = {"cond": [], "uncond": []}
    for step in range(20):
        for branch, slope in slopes.items():
            if branch == "uncond" and 6 <= step <= 12:
                continue
            feature = torch.full((4,), slope * step)
            if session.kind(step, branch) is StepKind.FULL:
                session.write(step, branch, feature)
                computed[branch].append(step)
            elif step > 4:
                torch.testing.assert_close(session.forecast(step, branch), feature)
    assert computed == {"cond": [0, 4, 8, 12, 16], "uncond": [0, 4, 16]}


@pytest.mark.parametrize("order", [0, 1, 2])
def test_features_computed_in_place_give_the_same_run(order):
    config, features = CacheConfig(interval=4, order=order, warmup_steps=2, cooldown_steps=1), random_features(20)
    copied, in_place = CacheSession(config, 20), CacheSession(config, 20)
    expected, used = run(copied, features), {}
    for step in range(20):
        if in_place.kind(step, "cond") is StepKind.FULL:
            slot = in_place.reserve(step, "cond", torch.empty(3, 4))
            assert slot is not None
            slot.copy_(features[step])
            in_place.write(step, "cond", slot)
            used[step] = slot.clone()
        else:
            used[step] = in_place.forecast(step, "cond")
    assert all(torch.equal(used[step], expected[step]) for step in range(20))
    assert in_place.records == copied.records, "audits too, though the oldest anchor was overwritten"
    assert in_place.nbytes == copied.nbytes


def test_nothing_is_reserved_with_the_cache_off():
    session = CacheSession(CacheConfig(interval=1), 5)
    assert session.reserve(0, "cond", torch.empty(3)) is None
    assert session.nbytes == 0
