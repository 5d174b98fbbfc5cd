"""Weights learnt end to end: gradients of the last latents' error through a whole cached run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from plugin.building.learning.batch import Batch, Gradients, Steps
from plugin.building.learning.weighers import of_rows
from taylorseer.predictors import Weights

_RATE = 2e-3  # Adam's, at its highest
_WARM_UP = 5  # iterations
_PATIENCE = 3  # checks without a better result


def refine(
    batches: Sequence[Batch],
    held_out: Batch,
    full_steps: Steps,
    rows: Mapping[int, Weights],
    iterations: int,
    *,
    gradients: Gradients = Gradients.FULL_STEPS,
    check_every: int = 10,
    on_check: Callable[[int, float, Mapping[int, Weights]], None] = lambda iteration, held_out_db, weights: None,
) -> dict[int, Weights]:
    """The weights that bring the last latents closer to the uncached ones, found by Adam.

    The loss is the mean over the requests of the error in dB (`Batch.distances`). It is differentiated through the
    pipeline's own loop, guidance and solver included.

    Args:
        batches: to learn from, one after the other; their hosts run the blocks on torch.
        held_out: other requests, by which the best weights are chosen and the end is found.
        full_steps: of the runs.
        rows: the weights to begin with, by forecast step.
        iterations: at most.
        gradients: what is differentiated besides the forecasts.
        check_every: iterations from one look at `held_out` to the next.
        on_check: called at each look with the iteration, the held-out error in dB, lower is closer, and the weights.

    Returns:
        The weights with the lowest held-out error; those given where nothing is better.
    """
    leaves = {step: torch.tensor(row, dtype=torch.float32, requires_grad=True) for step, row in rows.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=_RATE, betas=(0.9, 0.95))
    best, best_error, waited = dict(rows), _error(held_out, full_steps, rows), 0
    on_check(0, best_error, rows)
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = _rate(iteration, iterations)
        batch = batches[iteration % len(batches)]
        loss = batch.distances(batch.run(full_steps, of_rows(leaves), gradients=gradients)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (iteration + 1) % check_every == 0:
            found = {step: leaf.detach().double().numpy().astype(np.float64) for step, leaf in leaves.items()}
            error = _error(held_out, full_steps, found)
            on_check(iteration + 1, error, found)
            waited = 0 if error < best_error else waited + 1
            if error < best_error:
                best, best_error = found, error
            if waited == _PATIENCE:
                break
    return best


def _rate(iteration: int, iterations: int) -> float:
    """Of an iteration: it rises in the first few and falls to 0 along a cosine."""
    return _RATE * min(1.0, (iteration + 1) / _WARM_UP) * (1 + math.cos(math.pi * iteration / iterations)) / 2


def _error(batch: Batch, full_steps: Steps, rows: Mapping[int, Weights]) -> float:
    return float(batch.distances(batch.run(full_steps, of_rows(rows))).mean())
