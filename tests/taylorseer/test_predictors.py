"""Forecast weights, against the recursion written out and closed forms."""

import numpy as np
import pytest

from taylorseer import PREDICTORS, forecast_weights
from tests.support.recursion import Recursion

STEPS = [
    pytest.param([0], id="one anchor"),
    pytest.param([0, 1, 2], id="evenly"),
    pytest.param([1, 2, 7, 12], id="warm-up then interval"),
    pytest.param([3, 4, 9, 11, 20], id="unevenly"),
    pytest.param([49, 48, 43, 38], id="downwards"),
]


@pytest.mark.parametrize("anchor_steps", STEPS)
@pytest.mark.parametrize("order", range(5))
def test_taylor_equals_the_recursion(anchor_steps, order):
    features = np.random.default_rng(0).normal(size=(len(anchor_steps), 7))
    recursion = Recursion(order)
    for step, feature in zip(anchor_steps, features, strict=True):
        recursion.full(step, feature)
    direction = 1 if anchor_steps[-1] >= anchor_steps[0] else -1
    for k in (1, 2, 4):
        step = anchor_steps[-1] + direction * k
        forecast = forecast_weights("taylor", order, anchor_steps, step) @ features
        # float64 on both sides: only the order of the operations differs
        np.testing.assert_allclose(forecast, recursion.forecast(step), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("anchor_steps", [[0, 5, 10], [10, 5, 0], [2, 3, 9]])
def test_taylor_order_1_is_exact_on_lines_in_both_directions(anchor_steps):
    step = anchor_steps[-1] + (3 if anchor_steps[-1] > anchor_steps[0] else -3)
    weights = forecast_weights("taylor", 1, anchor_steps, step)
    assert weights @ (4.0 - 0.5 * np.array(anchor_steps)) == pytest.approx(4.0 - 0.5 * step, abs=1e-12)


def test_taylor_order_2_errs_on_a_parabola_as_the_closed_form_says():
    """On F = s^2 with spacing N the forecast k steps on is N*k too low: it is no interpolating polynomial."""
    interval, k = 5, 3
    anchor_steps = [0, interval, 2 * interval]
    step = anchor_steps[-1] + k
    forecast = forecast_weights("taylor", 2, anchor_steps, step) @ (np.array(anchor_steps, dtype=float) ** 2)
    assert forecast - step**2 == pytest.approx(-interval * k, abs=1e-9)


@pytest.mark.parametrize(("order", "gain"), [(1, 2.67), (2, 4.06), (4, 5.15)])
def test_noise_gain_of_taylor(order, gain):
    anchor_steps = [6 * i for i in range(order + 1)]
    weights = forecast_weights("taylor", order, anchor_steps, anchor_steps[-1] + 5)
    assert np.abs(weights).sum() == pytest.approx(gain, abs=0.005)


@pytest.mark.parametrize("anchor_steps", STEPS)
@pytest.mark.parametrize("order", range(5))
def test_newton_is_exact_on_polynomials_up_to_its_order(anchor_steps, order):
    degree = min(order, len(anchor_steps) - 1)
    polynomial = np.polynomial.Polynomial(np.random.default_rng(order).normal(size=degree + 1), domain=(0, 50))
    step = anchor_steps[-1] + 3
    forecast = forecast_weights("newton", order, anchor_steps, step) @ polynomial(np.array(anchor_steps))
    assert forecast == pytest.approx(polynomial(step), abs=1e-9)


def test_newton_is_taylor_up_to_order_1():
    for order in (0, 1):
        taylor, newton = (forecast_weights(name, order, [2, 5, 9], 11) for name in ("taylor", "newton"))
        np.testing.assert_allclose(newton, taylor, atol=1e-12)


def test_hermite_at_order_1_is_taylor_with_half_the_slope():
    features = np.array([3.0, 7.0])
    assert forecast_weights("hermite", 1, [0, 4], 7) @ features == pytest.approx(7.0 + 0.5 * 3 * (7.0 - 3.0) / 4)


def test_hermite_at_order_2_is_as_the_polynomials_say():
    """sigma^2 H_2(sigma k) = sigma^2 (4 sigma^2 k^2 - 2), which is k^2 / 4 - 1/2 at sigma 0.5."""
    anchor_steps, features, k = [0, 2, 4], np.array([1.0, 2.0, 5.0]), 3
    first, second = (5.0 - 2.0) / 2, ((5.0 - 2.0) / 2 - (2.0 - 1.0) / 2) / 2
    expected = 5.0 + first * k / 2 + second * (k**2 / 4 - 0.5) / 2
    assert forecast_weights("hermite", 2, anchor_steps, 4 + k) @ features == pytest.approx(expected)


@pytest.mark.parametrize("anchor_steps", STEPS)
def test_chebyshev_is_the_ridge_regression_that_least_squares_solve(anchor_steps):
    step = anchor_steps[-1] + 2
    features = np.random.default_rng(1).normal(size=(len(anchor_steps), 3))
    forecast = forecast_weights("chebyshev", 8, anchor_steps, step) @ features
    # float64 on both sides: only the solver differs
    np.testing.assert_allclose(forecast, ridge_forecast(anchor_steps, step, features), atol=1e-10)


@pytest.mark.parametrize("anchor_steps", STEPS)
def test_spectrum_is_half_the_ridge_regression_and_half_the_line_of_two_anchors(anchor_steps):
    step = anchor_steps[-1] + 2
    features = np.random.default_rng(1).normal(size=(len(anchor_steps), 3))
    newest = min(2, len(anchor_steps))
    line = np.polynomial.polynomial.polyfit(anchor_steps[-2:], features[-2:], newest - 1)
    linear = np.polynomial.polynomial.polyval(step, line)
    forecast = forecast_weights("spectrum", 8, anchor_steps, step) @ features
    # float64 on both sides: only the solvers differ
    np.testing.assert_allclose(forecast, (ridge_forecast(anchor_steps, step, features) + linear) / 2, atol=1e-10)


def ridge_forecast(anchor_steps, step, features):
    """The penalty as rows of a least-squares problem, by numpy's solver; cos(m arccos) in closed form."""
    positions = np.array([*anchor_steps, step], dtype=float)
    scaled = 2 * (positions - positions.min()) / (positions.max() - positions.min()) - 1
    degrees = np.arange(min(4, len(anchor_steps)))
    basis = np.cos(degrees * np.arccos(scaled)[:, None])
    rows = np.concatenate([basis[:-1], np.sqrt(0.1) * np.eye(len(degrees))])
    zeros = np.zeros((len(degrees), features.shape[1]))
    return basis[-1] @ np.linalg.lstsq(rows, np.concatenate([features, zeros]), rcond=None)[0]


@pytest.mark.parametrize("anchor_steps", [[0, 1, 2], [1, 2, 7, 12], [3, 4, 9, 11, 20], [49, 48, 43, 38]])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_foca_is_bdf2_solved_for_the_step_and_heuns_mean_of_slopes(anchor_steps, k):
    """BDF2 by its definition, without its coefficients: a parabola through the step's value and the two before it has
    the given derivative at the step."""
    direction = 1 if anchor_steps[-1] > anchor_steps[0] else -1
    step = anchor_steps[-1] + direction * k
    features = np.random.default_rng(2).normal(size=len(anchor_steps))
    slope = parabola_slope(anchor_steps[-3:], features[-3:])
    at_0, at_1 = (parabola_slope([*anchor_steps[-2:], step], [*features[-2:], value]) for value in (0.0, 1.0))
    bdf2 = (slope - at_0) / (at_1 - at_0)  # the slope is linear in the value
    h = step - anchor_steps[-1]
    expected = features[-1] + h / 2 * (slope + (bdf2 - features[-1]) / h)
    # float64 on both sides: numpy's fit of a parabola loses a few digits more than the closed form
    assert forecast_weights("foca", 4, anchor_steps, step) @ features == pytest.approx(expected, abs=1e-9)


def parabola_slope(steps, values):
    """The derivative at the last of three steps of the parabola through them."""
    return np.polynomial.Polynomial.fit(steps, values, 2).deriv()(steps[-1])


def test_foca_at_equal_spacing_is_as_the_equations_say():
    """D = (3 F2 - 4 F1 + F0) / 2h and B = 4/3 F2 - 1/3 F1 + 2/3 h D, by hand: (F2 + h D + B) / 2."""
    weights = forecast_weights("foca", 2, [0, 4, 8], 12)
    np.testing.assert_allclose(weights, [5 / 12, -11 / 6, 29 / 12], atol=1e-12)  # rounding of float64


@pytest.mark.parametrize("anchor_steps", STEPS)
@pytest.mark.parametrize("order", range(1, 5))
@pytest.mark.parametrize("k", [1, 30])
def test_foca_is_exact_on_lines(anchor_steps, order, k):
    step = anchor_steps[-1] + (k if anchor_steps[-1] >= anchor_steps[0] else -k)
    slope = 0.5 if len(anchor_steps) > 1 else 0.0  # one anchor has no slope: it is reused
    forecast = forecast_weights("foca", order, anchor_steps, step) @ (4.0 - slope * np.array(anchor_steps))
    assert forecast == pytest.approx(4.0 - slope * step, abs=1e-9)  # rounding of float64 times weights of up to 60


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_weights_sum_to_1_and_old_anchors_get_0(predictor, order):
    weights = forecast_weights(predictor, order, [0, 1, 2, 7, 12], 14)
    assert weights.dtype == np.float64
    if predictor not in ("chebyshev", "spectrum"):  # whose penalty shrinks
        assert weights.sum() == pytest.approx(1.0)
    assert not weights[: 5 - (order + 1)].any()


def test_reuse_takes_the_newest_anchor():
    assert forecast_weights("reuse", 3, [0, 4, 8], 11).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("magic", 1, [0], 1), "predictor is 'magic', must be one of: taylor, reuse, newton"),
        (("taylor", 9, [0], 1), "order is 9, must be from 0 to 8"),
        (("taylor", 1, [], 1), "anchor_steps is empty"),
        (("taylor", 1, [3, 3], 4), "must hold each step once"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        forecast_weights(*arguments)
