"""Distances between pictures against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plugin.building.distances import distances


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
