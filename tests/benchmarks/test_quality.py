"""The benchmark of quality: its settings, and its outputs from made-up figures."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from benchmarks import quality, quality_measures
from benchmarks.environment import describe
from benchmarks.harness import MODEL
from benchmarks.plots import draw_quality
from benchmarks.quality_studio import COUNTS, GRID, PROMPTS, Setting, methods, paper_settings
from benchmarks.quality_tables import markdown
from plugin.config import ModelConfig
from plugin.paths import REPOSITORY
from taylorseer import full_steps


def test_every_method_has_as_many_full_steps_as_it_is_shown_with():
    config = ModelConfig.from_folder(REPOSITORY / f"{MODEL}_stream")
    for setting, count in GRID:
        found = methods(config, setting.num_steps, count)
        assert "TaylorSeer, order 2, even" in found
        assert ("learnt" in found) == (f"tuned-{count}" in config.presets)
        assert {len(cache.full_steps(setting.num_steps)) for cache in found.values()} == {count}
    assert {count for _, count in GRID} == set(COUNTS)


def test_the_papers_own_settings_are_found_by_their_number_of_full_steps():
    assert paper_settings(50, 12).full_steps(50) == full_steps(50, 5, 3)
    assert paper_settings(50, 10).full_steps(50) == full_steps(50, 6, 3)
    assert paper_settings(50, 15).full_steps(50) == full_steps(50, 4, 3, 1), "14 and the last one"
    assert paper_settings(50, 49) is None


@pytest.mark.parametrize(
    ("model", "order", "first", "rest", "count"),
    # TaylorSeer's own settings (arXiv 2503.06923): order, warm-up, then each N-th step; full steps of 50.
    [
        ("dit_xl_2_256", 4, (0, 1), range(5, 50, 4), 14),
        ("flux_dev", 2, (0, 1, 2), range(8, 50, 6), 10),
        ("emoji", 2, (0, 1, 2), range(8, 50, 6), 10),
        ("hunyuan_video", 1, (0,), range(5, 50, 5), 10),
        ("wan2_1_t2v", 1, (0,), range(5, 50, 5), 10),
        ("hidream_full", 2, (0,), range(4, 50, 4), 13),
    ],
)
def test_the_preset_paper_of_each_model_is_the_papers(model, order, first, rest, count):
    preset = ModelConfig.from_folder(REPOSITORY / f"{model}_stream").presets["paper"]
    assert (preset.predictor, preset.order) == ("taylor", order)
    assert preset.full_steps(50) == (*first, *rest)
    assert len(preset.full_steps(50)) == count


def test_prompts_are_64_and_none_of_them_is_one_that_presets_are_tuned_by():
    judged, tuned = (set(path.read_text().splitlines()) for path in (PROMPTS, PROMPTS.with_name("tuning_prompts.txt")))
    assert len(judged) == 64
    assert len(tuned) == 16
    assert not judged & tuned


def every_part() -> dict[str, Any]:
    """A small result of each part."""
    figures = {"ssim": 0.9, "perceptual": 0.1, "seconds": 0.2}
    rows = [
        {"setting": setting, "full_steps": full, "method": method, "psnr": 30.0 + full + len(method)} | figures
        for setting, full in (("50 steps", 12), ("28 steps", 12), ("50 steps", 15))
        for method in ("fewer plain steps", "learnt")
    ]
    return {
        "methods": describe() | {"model": "emoji", "pictures": 3, "rows": rows[:-1]},
        "coordinates": {
            "setting": "50 steps",
            "full_steps": 12,
            "pictures": 3,
            "rows": [
                {"predictor": "newton", "order": 2, "schedule": "even"}
                | {"psnr": {"step": 43.21, "sigma": 2.0, "log_snr": 3.0}}
            ],
        },
        "budgets": {
            "setting": "50 steps",
            "pictures": 3,
            "rows": [
                {"max_error": 0.1, "full_steps": [10, 12, 14], "psnr": [40.0, 41.0, 42.0]}
                | {"same_schedule_in_company": True}
            ],
        },
        "ranking": {"setting": "50 steps", "pictures": 3, "schedules": 70, "psnr_range": [40.0, 46.0]}
        | {"psnr_of_least_error": 42.04, "rank_correlation": -0.25},
        "few_steps": {
            "pictures": 3,
            "rows": [
                {"num_steps": 4, "full_steps": 2, "plain": 20.04, "taylor 1": 21.0},
                {"num_steps": 8, "full_steps": 4, "plain": 30.0, "learnt": 57.0},
            ],
        },
        "features": {
            "setting": "50 steps",
            "full_steps": 12,
            "pictures": 3,
            "rows": [
                {"feature": "block stack", "schedule": "searched", "predictor": "taylor", "order": 1}
                | {"psnr": 45.0, "bytes": 2048}
            ],
        },
        "steps": {"methods": {"learnt": {"full_steps": [0, 2], "distance": [0.0, 0.1, 0.2, 0.1]}}},
    }


def test_tables_and_plots_are_made_from_the_parts(tmp_path):
    result = every_part()
    lines = markdown(result).splitlines()
    assert lines[2] == "| method | 12 | 15 |"
    assert lines[4] == "| fewer plain steps | 59.0 / 0.900 / 0.1000 / 0.20 | 62.0 / 0.900 / 0.1000 / 0.20 |"
    assert lines[5] == "| learnt | 48.0 / 0.900 / 0.1000 / 0.20 | - |"
    assert "| newton, order 2 | even | 43.2 | 2.0 | 3.0 |" in lines
    assert "| 0.1 | 10.2 / 12 / 13.8 | 40.1 / 41 / 41.9 | yes |" in lines
    assert "| 4 | 2 | 20.0 | 21.0 | - |" in lines
    assert "| 8 | 4 | 30.0 | - | 57.0 |" in lines
    assert any(
        line.endswith("has 42.0, and the rank correlation of that error with the PSNR is -0.25; 3 pictures of each")
        for line in lines
    )
    assert "| block stack | searched | taylor, order 1 | 45.0 | 2 |" in lines
    draw_quality(result, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 300


def test_what_is_missing_is_measured_and_the_rest_is_kept(monkeypatch):
    monkeypatch.setattr(quality_measures, "GRID", [(Setting(10), 8), (Setting(10, height=32, width=32), 8)])
    part = {"pictures": 1, "rows": []}
    assert len(list(quality_measures.measure_missing(part))) == len(part["rows"]) > 10
    assert {row["setting"] for row in part["rows"]} == {"10 steps, guidance 3.5", "10 steps, guidance 3.5, 32 x 32"}
    assert all(row["psnr"] > 20 and row["commit"] for row in part["rows"])
    kept = [row for row in part["rows"] if row["method"] != "learnt"]
    part["rows"] = list(kept)
    assert len(list(quality_measures.measure_missing(part))) == 2
    assert part["rows"][:-2] == kept
    assert {row["method"] for row in part["rows"][-2:]} == {"learnt"}


def test_going_on_with_nothing_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        quality.main(["--missing", "--output", str(tmp_path)])
    assert "has no part methods to go on with: --part methods measures it" in capsys.readouterr().err
