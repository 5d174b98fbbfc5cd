"""What a preset keeps of a run that the weights were fitted along."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from plugin.building.learning.batch import Batch, RunRecord
from plugin.building.learning.weighers import audit_row
from taylorseer import LearntRun
from taylorseer.predictors import Weights

_DIGITS = 6  # significant ones of a weight: the sum of the features is as exact as float32 makes it


def learnt_run(batch: Batch, record: RunRecord, order: int) -> LearntRun:
    """The rows of a run: the fitted weights of its forecast steps, and of each full step those of the best forecast.

    Args:
        batch: that was run.
        record: of the run.
        order: O.
    """
    rows = []
    for step in range(1, batch.num_steps):
        weights = record.weights.get(step)
        rows.append(_audited(record.anchors, step, order) if weights is None else weights)
    noise = None if batch.noise is None else float(f"{batch.noise:.{_DIGITS}g}")
    return LearntRun(batch.num_steps, record.full_steps, tuple(map(_rounded, rows)), noise)


def _audited(anchors: Mapping[str, Mapping[int, torch.Tensor]], step: int, order: int) -> Weights:
    """The best forecast of a full step, over the first branch that has anchors before it; else the newest anchor."""
    for kept in anchors.values():
        before = [features for at, features in kept.items() if at < step][-(order + 1) :]
        if step in kept and before:
            return audit_row(before, kept[step])
    return np.ones(1)


def _rounded(weights: Weights) -> tuple[float, ...]:
    return tuple(float(f"{each:.{_DIGITS}g}") for each in weights)
