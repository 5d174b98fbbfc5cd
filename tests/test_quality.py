"""The benchmark of quality: its distances against closed forms, and its outputs from made-up figures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.environment import describe
from benchmarks.plots import draw_quality
from benchmarks.quality import METHODS, PROMPTS, SCHEDULES, best_of, distances, markdown
from taylorseer import CacheConfig


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(8, 240, (64, 64, 3), dtype=np.uint8)


def test_equal_pictures_have_no_distance(picture):
    assert distances([picture], [picture]) == {
        "psnr": 60.0,
        "ssim": pytest.approx(1.0),
        "perceptual": pytest.approx(0.0, abs=1e-6),
    }


def test_psnr_is_that_of_the_mean_square(picture):
    other = picture + 5
    assert distances([other], [picture])["psnr"] == pytest.approx(10 * np.log10(255**2 / 25))


def test_more_noise_is_farther_by_every_distance(picture):
    smooth = np.asarray(Image.fromarray(picture).resize((8, 8)).resize((64, 64)))
    noise = np.random.default_rng(1).normal(size=smooth.shape)
    little, much = (np.clip(smooth + scale * noise, 0, 255).astype(np.uint8) for scale in (5, 40))
    near, far = distances([little], [smooth]), distances([much], [smooth])
    assert near["psnr"] > far["psnr"]
    assert near["ssim"] > far["ssim"]
    assert 0 < near["perceptual"] < far["perceptual"]


def test_every_method_is_a_setting_of_the_cache():
    for options in METHODS.values():
        for schedule in SCHEDULES:
            CacheConfig(schedule=schedule, **options)
    assert len(PROMPTS.read_text().splitlines()) == 16


def test_table_and_plot_are_made_from_the_rows(tmp_path):
    rows = [
        {"setting": setting, "interval": interval, "full_steps": full, "method": method, "schedule": schedule}
        | {"psnr": 30.0 + full + len(method), "ssim": 0.9, "perceptual": 0.1}
        for setting, interval, full in (("50 steps", 5, 12), ("28 steps", 5, 8), ("50 steps", 4, 14))
        for method, schedule in (("fewer plain steps", ""), ("reuse", "interval"), ("reuse", "even"))
    ]
    result = describe() | {"model": "emoji", "own_interval": 5, "rows": rows}
    lines = markdown(result).splitlines()
    assert lines[0] == "| PSNR in dB | 50 steps: 12 full | 28 steps: 8 full |"
    assert lines[2] == "| fewer plain steps | 59.0 | 55.0 |"
    assert lines[4] == "| reuse, spread evenly | 47.0 | 43.0 |"
    assert best_of(rows)["full_steps"] == 14
    draw_quality(result, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 300
