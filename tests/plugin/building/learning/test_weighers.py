"""Where a run's weights come from: predictors, rows, and a fit that is held to numpy's least squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler

from plugin.building.learning.guidance import Forecast, StepProblem, weighted
from plugin.building.learning.weighers import StepByStep, audit_row, of_predictor, of_rows
from plugin.denoising.schedulers import intercept
from taylorseer import forecast_weights

SHAPE, TOKENS, WIDTH = (3, 6, 4), 6, 8  # of the latents of three requests, and of features
START = np.array([0.1, -0.6, 1.5])
SCALE, RIDGE = 3.5, 1e-4
Respond = Callable[[torch.Tensor], Any]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


END = random(WIDTH, SHAPE[-1], seed=50)


def linear(features: torch.Tensor) -> Any:
    return (features @ END,)


def curved(features: torch.Tensor) -> Any:
    return (torch.tanh(features @ END) + 0.3 * features[..., :4] ** 2,)


def normalised(features: torch.Tensor) -> Any:
    """As most families end: a layer norm, which the features' scale is nothing to."""
    return (F.layer_norm(features, (WIDTH,), eps=1e-12) @ END,)


def anchors_of(seed: int) -> tuple[torch.Tensor, ...]:
    """Features that move from step to step, as those of one branch do."""
    first, by = random(SHAPE[0], TOKENS, WIDTH, seed=seed), 0.3
    return tuple(first + by * step * random(SHAPE[0], TOKENS, WIDTH, seed=seed + step) for step in (1, 2, 3))


def problem_of(respond: Respond, branches: int, start: np.ndarray = START, wanted_seed: int = 8) -> StepProblem:
    """A forecast step of Euler, whose uncached next latents are near those that the start's weights lead to."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    calls = [Forecast(place, anchors_of(10 * place + 1), respond) for place in range(branches)]
    outputs = [call.output(start) for call in calls]
    given = outputs[0][0] if branches == 1 else outputs[1][0] + SCALE * (outputs[0][0] - outputs[1][0])
    problems: list[StepProblem] = []

    def on_step(solver: Any) -> Any:
        wanted = solver.tried(given + 0.5 * given.std() * random(*SHAPE, seed=wanted_seed))
        problems.append(StepProblem(calls, outputs, start, solver, wanted))
        return solver.run(given)

    intercept(scheduler, on_step)
    scheduler.step(given, scheduler.timesteps[0], random(*SHAPE, seed=9))
    return problems[0]


def residual_of(problem: StepProblem, weights: np.ndarray) -> float:
    return float((problem.target - problem.output(weights)).double().square().sum())


@pytest.mark.parametrize("branches", [1, 2])
def test_a_linear_step_is_fitted_as_numpys_least_squares(branches):
    """A ridge of 1e-4 of the mean curvature, towards the start: further rows of a least-squares problem."""
    problem = problem_of(linear, branches)
    columns = [[(anchor @ END).flatten() for anchor in call.anchors] for call in problem.calls]
    if branches == 2:
        columns = [[u + SCALE * (c - u) for c, u in zip(*columns, strict=True)]]
    matrix = torch.stack(columns[0], dim=1).double().numpy()
    residual = problem.target.flatten().double().numpy() - matrix @ START
    ridge = RIDGE * np.trace(matrix.T @ matrix) / 3
    rows = np.concatenate([matrix, np.sqrt(ridge) * np.eye(3)])
    change = np.linalg.lstsq(rows, np.concatenate([residual, np.zeros(3)]), rcond=None)[0]
    assert np.abs(change).max() > 0.02
    found = StepByStep(2).fit(5, problem)
    # features are float32, and the fit ends where a round gains less than a thousandth
    assert found == pytest.approx(START + change, abs=2e-3 * np.abs(change).max())


@pytest.mark.parametrize("respond", [linear, curved, normalised])
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_fit_never_leaves_a_step_further_off_than_its_start(respond, branches, seed):
    problem = problem_of(respond, branches, np.array([0.5 * seed - 1, 0.3 * seed, 1.0]), wanted_seed=100 + seed)
    found = StepByStep(2).fit(5, problem)
    assert residual_of(problem, found) < residual_of(problem, problem.weights)


def test_where_nothing_can_be_gained_the_start_stays():
    problem = problem_of(lambda features: (features[..., :4] * 0 + 1,), 1)
    assert StepByStep(2).fit(5, problem) is problem.weights
    perfect = problem_of(linear, 1)
    perfect.target = perfect.output(perfect.weights)
    # a perfect start has no slope: only rounding moves the weights
    assert StepByStep(2).fit(5, perfect) == pytest.approx(START, abs=1e-5)


def norm_of(problem: StepProblem, weights: np.ndarray) -> float:
    return float(torch.linalg.vector_norm(weighted(problem.calls[0].anchors, weights)))


def test_features_before_a_normalisation_keep_their_norm():
    problem = problem_of(normalised, 2)
    found = StepByStep(2).fit(5, problem)
    assert norm_of(problem, found) == pytest.approx(norm_of(problem, START), rel=1e-5)  # float32
    assert np.abs(found - START).max() > 0.02


def test_features_whose_scale_counts_do_not():
    problem = problem_of(linear, 2)
    problem.target = 1.5 * problem.output(START)
    found = StepByStep(2).fit(5, problem)
    # half more of each weight is the solution, but for the ridge, which holds a ten-thousandth back
    assert found == pytest.approx(1.5 * START, abs=2e-3)


@pytest.mark.parametrize("order", [0, 1, 2, 5])
def test_a_step_begins_with_chebyshevs_weights_of_sum_1(order):
    anchors = (0, 2, 5, 9)
    count = min(order + 1, 4)
    plain = forecast_weights("chebyshev", order, anchors[-count:], 11)
    begun = StepByStep(order).begin(11, anchors)
    assert begun == pytest.approx(plain / plain.sum(), rel=1e-12)  # float64


def test_weights_of_predictors_and_rows_stay_as_they_are():
    problem = problem_of(linear, 1)
    for weigher in (of_predictor("newton", 2), of_rows({11: START})):
        assert weigher.fit(11, problem) is problem.weights
    weights = of_predictor("newton", 1).begin(11, (0, 2, 5, 9))
    assert weights == pytest.approx([-0.5, 1.5])  # the line through (5, a) and (9, b), at 11
    assert of_rows({11: START}).begin(11, (0, 2, 5, 9)) is START


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_audits_row_is_numpys_least_squares(count):
    anchors, features = list(anchors_of(1)[:count]), random(SHAPE[0], TOKENS, WIDTH, seed=33)
    matrix = torch.stack([each.flatten() for each in anchors], dim=1).double().numpy()
    expected = np.linalg.lstsq(matrix, features.flatten().double().numpy(), rcond=None)[0]
    # a ridge of a millionth, and products of float32
    assert audit_row(anchors, features) == pytest.approx(expected, abs=1e-5)


def test_an_audits_row_of_equal_anchors_is_finite():
    """Their products have no inverse: the ridge decides, and rounding says which of them has how much."""
    anchor = random(SHAPE[0], TOKENS, WIDTH, seed=1)
    row = audit_row([anchor, anchor], 3 * anchor)
    assert row.sum() == pytest.approx(3, abs=1e-4)  # a ridge of a millionth takes as much
    assert np.abs(row).max() < 3
