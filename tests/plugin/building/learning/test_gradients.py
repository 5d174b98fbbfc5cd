"""Gradients through a whole run of an unmodified pipeline: against differences, and what refining does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugin.building.learning.batch import Batch, Gradients
from plugin.building.learning.gradients import refine
from plugin.building.learning.weighers import of_rows
from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.serving.plan import example_request
from tests.support.tiny import FAMILIES

FULL = (0, 2, 5)
ROWS = {1: [0.7], 3: [-0.6, 1.8], 4: [-0.2, 1.3], 6: [0.3, -0.9, 1.7], 7: [0.1, -0.4, 1.2]}
CONFIG = {"pipeline": "hub/id", "size_multiple": "8", "min_size": "8", "max_frames": "17", "dtype": "float32"}


@pytest.fixture(scope="module", params=["flux", "wan"])
def batch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Two requests of a model of one call a step, and of one with two and a solver that remembers steps."""
    host = PipelineHost(FAMILIES[request.param].make(tmp_path_factory.mktemp("tiny"), torch.float32))
    host.family.transformer.requires_grad_(False)
    config = ModelConfig.from_parameters(CONFIG, Path())
    fields = {"height": 32, "width": 32, "num_inference_steps": 8, "guidance_scale": 3.0}
    fields |= {"num_frames": 5} if request.param == "wan" else {}
    requests = [example_request(config, prompt=text, seed=seed, **fields) for seed, text in enumerate(("a", "a house"))]
    return Batch(host, requests, 16)


def leaves() -> dict[int, torch.Tensor]:
    return {step: torch.tensor(row, requires_grad=True) for step, row in ROWS.items()}


def error(batch: Batch, rows: dict[int, np.ndarray]) -> float:
    return float(batch.distances(batch.run(FULL, of_rows(rows))).mean())


def test_gradients_are_those_of_differences(batch):
    found = leaves()
    record = batch.run(FULL, of_rows(found), gradients=Gradients.FULL_STEPS)
    batch.distances(record).mean().backward()
    for step, place in ((1, 0), (3, 1), (6, 2), (7, 0)):
        by, sides = 0.01, []
        for sign in (1, -1):
            rows = {at: np.array(row) for at, row in ROWS.items()}
            rows[step][place] += sign * by
            sides.append(error(batch, rows))
        slope = (sides[0] - sides[1]) / (2 * by)
        # float32 runs of which the error in dB is 1e-5 exact, so differences of 0.02 are 1e-3; and curvature
        assert float(found[step].grad[place]) == pytest.approx(slope, rel=0.02, abs=0.02)


def test_full_steps_as_constants_leave_out_what_goes_through_them(batch):
    """The last segment has no full step after it, so that its gradients are whole."""
    found = {}
    for way in (Gradients.FULL_STEPS, Gradients.FORECASTS):
        rows = leaves()
        batch.distances(batch.run(FULL, of_rows(rows), gradients=way)).mean().backward()
        found[way] = {step: row.grad for step, row in rows.items()}
    whole, part = found[Gradients.FULL_STEPS], found[Gradients.FORECASTS]
    for step in (6, 7):
        torch.testing.assert_close(part[step], whole[step], rtol=1e-4, atol=1e-4)  # the same sums in another order
    assert not torch.allclose(part[1], whole[1], rtol=1e-3, atol=0)


def test_nothing_is_differentiated_unless_it_is_asked_for(batch):
    record = batch.run(FULL, of_rows(leaves()))
    assert not record.latents.requires_grad
    assert torch.is_grad_enabled()


def test_refining_ends_nearer_on_what_it_is_held_to(batch):
    rows = {step: np.array(row) for step, row in ROWS.items()}
    looks: list[tuple[int, float, Any]] = []
    found = refine([batch], batch, FULL, rows, 20, check_every=5, on_check=lambda *look: looks.append(look))
    assert [at for at, *_ in looks] == [0, 5, 10, 15, 20]
    for _, held_out, weights in looks:
        assert held_out == pytest.approx(error(batch, weights), abs=1e-4)
    assert error(batch, found) == pytest.approx(min(each for _, each, _ in looks), abs=1e-3)
    assert error(batch, found) < error(batch, rows) - 0.01


def test_weights_that_cannot_be_bettered_stay(batch, monkeypatch):
    """Another error than the one that is learnt from: each look is worse than the one before."""
    errors = iter(range(10))
    monkeypatch.setattr("plugin.building.learning.gradients._error", lambda *_: float(next(errors)))
    rows = {step: np.array(row) for step, row in ROWS.items()}
    looks: list[int] = []
    found = refine([batch], batch, FULL, rows, 20, check_every=1, on_check=lambda at, *_: looks.append(at))
    assert looks == [0, 1, 2, 3], "three looks without a better result end it"
    assert all((found[step] == rows[step]).all() for step in rows)
