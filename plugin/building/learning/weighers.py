"""Where the weights of a run come from: settings, an earlier fit, or a fit step by step along the run itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from plugin.building.learning.batch import Steps
from plugin.building.learning.guidance import StepProblem, weighted
from taylorseer import forecast_weights
from taylorseer.learnt import fallback_weights
from taylorseer.predictors import Weights

_RIDGE = 1e-4  # of the mean curvature: what the step's weights cost for each unit that they leave their start by
_ROUNDS = 3  # Gauss-Newton steps at most; two are enough at most steps
_PROBE = 0.05  # by which a weight is changed to see what that does; smaller changes vanish in bfloat16's rounding
_WORTH = 1e-3  # of the residual: a round that gains less is the last one


class Given:
    """Weights as they are.

    Args:
        weights: of a step's newest anchors, by the step and the steps of its anchors, oldest first.
    """

    fits = False

    def __init__(self, weights: Callable[[int, Steps], Weights | torch.Tensor]) -> None:
        self._weights = weights

    def begin(self, step: int, anchor_steps: Steps) -> Weights | torch.Tensor:
        """See `Weigher`."""
        return self._weights(step, anchor_steps)

    def fit(self, step: int, problem: StepProblem) -> Weights:
        """See `Weigher`; nothing is fitted."""
        return problem.weights


def of_predictor(predictor: str, order: int) -> Given:
    """The weights of a predictor in `taylorseer.PREDICTORS`."""
    return Given(lambda step, anchors: forecast_weights(predictor, order, anchors[-(order + 1) :], step))


def of_rows(rows: Mapping[int, Weights] | Mapping[int, torch.Tensor]) -> Given:
    """Weights by step, as a fit has found them."""
    return Given(lambda step, anchors: rows[step])


class StepByStep:
    """Fits the weights of each forecast step while the run goes on.

    A step's weights are those with which the scheduler's next latents are closest to the uncached run's, over the whole
    batch. So each forecast makes up for the errors of those before it, as far as a sum of the anchors can. Each is a
    problem of least squares in at most order+1 unknowns (Gauss-Newton with a ridge), and the whole fit costs one cached
    run; nothing is differentiated. Weights far from the ridge's start are rare, because the rows of one batch are many.

    The direction that only scales the features is left free by families whose stack is followed by a normalisation. The
    features keep the norm that the start gives them, where that costs nothing.

    Args:
        order: O; a forecast uses at most the newest O+1 anchors.
    """

    fits = True

    def __init__(self, order: int) -> None:
        self._order = order

    def begin(self, step: int, anchor_steps: Steps) -> Weights:
        """See `Weigher`."""
        return fallback_weights(self._order, anchor_steps[-(self._order + 1) :], step)

    def fit(self, step: int, problem: StepProblem) -> Weights:
        """See `Weigher`."""
        start = weights = problem.weights
        output = problem.output(weights)
        norm = _norm(problem, start) if _scale_is_free(problem, start, output) else 0.0
        residual = _square(problem.target - output)
        ridge, damping, cost = 0.0, 1e-3, residual
        for _ in range(_ROUNDS):
            gram, slope = _normal_equations(problem, weights, output)
            curvature = float(np.trace(gram)) / len(weights)
            if not curvature:
                break
            ridge = ridge or _RIDGE * curvature
            before = cost
            for _ in range(8):
                system = gram + (ridge + damping * curvature) * np.eye(len(weights))
                tried = weights + np.linalg.solve(system, slope + ridge * (start - weights))
                if norm:
                    tried = tried * (norm / _norm(problem, tried))
                output_tried = problem.output(tried)
                cost_tried = _square(problem.target - output_tried) + ridge * float(np.square(tried - start).sum())
                if cost_tried < cost:
                    weights, output, cost, damping = tried, output_tried, cost_tried, damping / 5
                    break
                damping *= 5
            if before - cost < _WORTH * residual:
                break
        return weights


def audit_row(anchors: list[torch.Tensor], features: torch.Tensor) -> Weights:
    """The weights with which a sum of the anchors is closest to a full step's features: what an audit forecasts with.

    Args:
        anchors: (rows, *feature) each, oldest first.
        features: (rows, *feature).
    """
    matrix = torch.stack([each.flatten() for each in anchors]).float()
    gram = (matrix @ matrix.T).double().cpu().numpy()
    slope = (matrix @ features.flatten().float()).double().cpu().numpy()
    return np.linalg.solve(gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram)), slope)


def _normal_equations(problem: StepProblem, weights: Weights, output: torch.Tensor) -> tuple[Weights, Weights]:
    """(weights, weights) and (weights,): of the least-squares problem, linear around these weights."""
    columns = []
    for place in range(len(weights)):
        probe = weights.copy()
        probe[place] += _PROBE
        columns.append(((problem.output(probe) - output) / _PROBE).flatten())
    matrix = torch.stack(columns).double()
    residual = (problem.target - output).flatten().double()
    return (matrix @ matrix.T).cpu().numpy(), (matrix @ residual).cpu().numpy()


def _norm(problem: StepProblem, weights: Weights) -> float:
    """Of the first branch's features with these weights; at least a little, so that it can divide."""
    return max(1e-12, float(torch.linalg.vector_norm(weighted(problem.calls[0].anchors, weights).float())))


def _scale_is_free(problem: StepProblem, weights: Weights, output: torch.Tensor) -> bool:
    """Whether features of twice the size lead to the same output."""
    return _square(problem.output(2 * weights) - output) < 1e-6 * _square(output)


def _square(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))
