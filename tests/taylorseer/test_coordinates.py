"""Positions of steps along a coordinate, against closed forms."""

import math

import pytest
import torch

from taylorseer import COORDINATES, Anchors, CacheConfig, CacheSession, forecast_weights, step_positions

FLOW = tuple((1 - sigma, sigma) for sigma in (1.0, 0.75, 0.5, 0.25, 0.125))


@pytest.mark.parametrize("coordinate", COORDINATES)
def test_positions_ascend_from_0_to_the_last_index(coordinate):
    positions = step_positions(coordinate, FLOW)
    assert positions[0] == 0
    assert positions[-1] == pytest.approx(4)
    assert list(positions) == sorted(positions)


def test_steps_are_their_indices_and_sigma_is_linear_in_sigma():
    assert step_positions("step", FLOW) == (0, 1, 2, 3, 4)
    assert step_positions("sigma", FLOW) == pytest.approx([4 * (1 - sigma) / 0.875 for _, sigma in FLOW])


def test_the_logarithm_is_that_of_signal_to_noise_and_pure_noise_lies_one_gap_before():
    logs = [math.log((1 - sigma) / sigma) for _, sigma in FLOW[1:]]
    logs.insert(0, 2 * logs[0] - logs[1])
    expected = [4 * (each - logs[0]) / (logs[-1] - logs[0]) for each in logs]
    assert step_positions("log_snr", FLOW) == pytest.approx(expected)
    clean = (*FLOW, (1.0, 0.0))
    positions = step_positions("log_snr", clean)
    assert positions[-1] - positions[-2] == pytest.approx(positions[-2] - positions[-3])


@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("count", [1, 2])
def test_short_runs_have_positions(coordinate, count):
    assert step_positions(coordinate, FLOW[:count]) == tuple(range(count))


def test_noise_that_does_not_fall_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="coordinate is 'sigma', must be 'step': here the noise does not always fall"):
        step_positions("sigma", (FLOW[0], FLOW[1], FLOW[1], FLOW[2]))
    with pytest.raises(ValueError, match="coordinate is 'time', must be one of: step, sigma, log_snr"):
        step_positions("time", FLOW)
    with pytest.raises(ValueError, match="coordinate is 'time', must be one of: step, sigma, log_snr"):
        CacheConfig(coordinate="time")


def test_forecasts_are_exact_on_what_is_linear_in_the_coordinate():
    """Order 1 of features that are linear in sigma, which they are not in the step."""
    levels = [(1 - sigma, sigma) for sigma in (1.0, 0.9, 0.7, 0.4, 0.2, 0.1)]
    session = CacheSession(CacheConfig(3, 1, 2, coordinate="sigma"), 6, levels)
    features = {step: torch.tensor([2.0, -3.0]) * levels[step][1] + 1 for step in range(6)}
    for step in range(2):
        session.write(step, "cond", features[step])
    torch.testing.assert_close(session.forecast(3, "cond"), features[3])
    by_step = CacheSession(CacheConfig(3, 1, 2), 6)
    for step in range(2):
        by_step.write(step, "cond", features[step])
    assert not torch.allclose(by_step.forecast(3, "cond"), features[3], atol=0.1)


def test_weights_are_those_of_the_positions():
    positions = (0.0, 0.5, 2.0, 7.0)
    anchors = Anchors("newton", 2, positions=positions)
    values = [3.0, -1.0, 4.0]
    for step, value in enumerate(values):
        anchors.write(step, torch.tensor([value]))
    expected = forecast_weights("newton", 2, positions[:3], positions[3]) @ values
    assert float(anchors.forecast(3)) == pytest.approx(expected, rel=1e-5)  # float32 sums


def test_a_session_without_noise_levels_says_so():
    with pytest.raises(ValueError, match="coordinate is 'sigma', must be 'step': no noise levels are known"):
        CacheSession(CacheConfig(coordinate="sigma"), 6)
