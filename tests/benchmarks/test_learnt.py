"""The benchmark of learnt weights in short form: few pictures, few schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import learnt, learnt_cost, learnt_elsewhere
from benchmarks.learnt_transfer import Subject, measure_transfer
from plugin.building.learning.batch import Gradients
from taylorseer import even_steps


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LEARN": 1,
        "HELD_OUT": 1,
        "COUNTS": (8,),
        "TRIES": 1,
        "ITERATIONS": 2,
        "FITS": ((1, 4), (2, 4), (2, 1)),
        "CURVES": ((2, Gradients.FORECASTS),),
    }.items():
        monkeypatch.setattr(learnt, name, value)
    for name, value in {"COUNTS": (8,), "PICTURES": 1, "TRIES": 2, "TURNS": 5}.items():
        monkeypatch.setattr(learnt_cost, name, value)
    for name, value in {
        "PICTURES": 2,
        "COUNTS": (8,),
        "LENGTHS": (20,),
        "SIZES": (),
        "GUIDANCE": (),
        "SHIFTS": (3.0,),
        "STRENGTHS": (0.6,),
        "BUDGETS": (0.05,),
        "ADAPTERS": (0.05,),
    }.items():
        monkeypatch.setattr(learnt_elsewhere, name, value)


def measured(folder: Path, *parts: str) -> dict[str, Any]:
    learnt.main([*(each for part in parts for each in ("--part", part)), "--output", str(folder)])
    result: dict[str, Any] = json.loads((folder / "learnt.json").read_text())
    return result


@pytest.mark.usefixtures("short")
def test_weights_and_schedule_are_measured_alone_and_together(tmp_path: Path) -> None:
    result = measured(tmp_path, "ablation", "curve", "pictures")
    of_one, of_two, of_order_1 = result["pictures"]["rows"]
    assert (of_one["pictures"], of_order_1["order"]) == (1, 1)
    assert of_one["learning_db"] < of_one["held_out_db"], "it was fitted to the first of these pictures"
    assert of_two["held_out_db"] < of_order_1["held_out_db"] - 5
    (curve,) = result["curve"]["rows"]
    assert curve["pictures"] == 2
    assert [point["iteration"] for point in curve["points"]] == [0], "the next look would be after ten"
    assert curve["points"][0]["learning_db"] < -40
    rows = {row["way"]: row["held_out_db"] for row in result["ablation"]["rows"]}
    assert len(rows) == 10
    preset = rows["step by step, the preset's schedule (the preset)"]
    assert preset < rows["even steps, chebyshev"] - 10
    assert preset < rows["ridge, the preset's schedule"]


def test_schedules_and_weights_of_one_model_are_tried_on_another() -> None:
    """Both are the embedded model here: one with its own full steps, one with even ones."""
    bench = learnt.Bench()
    learn, held_out = (bench.batch(learnt.PROMPTS, 1, seed) for seed in (0, 1))
    own, even = bench.presets["tuned-8"].full_steps(50), even_steps(50, 8)
    subjects = {"tuned": Subject(learn, held_out, own), "not tuned": Subject(learn, held_out, even)}
    rows = {(row["model"], row["steps of"]): row for row in measure_transfer(subjects)["rows"]}
    assert len(rows) == 6
    without, of_own, of_even = (rows["tuned", name] for name in ("even steps", "tuned", "not tuned"))
    assert without["chebyshev"] == of_even["chebyshev"]
    assert of_own["its weights"] == of_own["fitted"] < of_own["chebyshev"] < without["chebyshev"] - 5
    assert rows["not tuned", "tuned"] == of_own | {"model": "not tuned"}


@pytest.mark.usefixtures("short")
def test_presets_are_measured_elsewhere_and_what_a_tuning_costs(tmp_path: Path) -> None:
    result = measured(tmp_path, "cost", "latency", "robustness", "budgets")
    (latency,) = result["latency"]["rows"]
    assert latency["order"] == 4
    # the same work but for the weights' numbers; five turns beside other tests
    assert 0.5 < latency["learnt_over_chebyshev"] < 2
    cost = result["cost"]
    of_uncached_runs = 50 + 25 + 37 + 50  # the batch of each number of steps, and the picture that measures
    assert cost["rows"] > of_uncached_runs + 2 * 8
    assert 0 < cost["share_of_full_steps"] < 1
    rows = {row["what"]: row for row in result["robustness"]["rows"]}
    assert [*rows][:4] == ["20 steps", "a negative prompt", "shift 3", "image to image at strength 0.6"]
    assert [row["num_steps"] for row in rows.values()] == [20, 50, 50, 30, 50]
    assert all(row["learnt"] > row["even, chebyshev"] for row in rows.values())
    assert rows["shift 3"]["learnt"] > rows["shift 3"]["its steps with chebyshev"], "as it was learnt"
    budgets = {row["what"]: [] for row in result["budgets"]["rows"]}
    for row in result["budgets"]["rows"]:
        budgets[row["what"]].append(row["full_steps"])
    assert [*budgets] == ["as learnt", "a negative prompt", "shift 3"]
    assert all(plain == 8 <= audited for plain, audited in budgets.values())
    assert set(result["presets"]) == {f"tuned-{count}" for count in (6, 8, 10, 12, 15)}
    assert len(result["presets"]["tuned-8"]["weights"]) == 50 - 8
    learnt.main(["--part", "cost", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "learnt.json").read_text())["robustness"] == result["robustness"]
    assert Image.open(tmp_path / "learnt.png").width > 600
