"""Comparing pictures with the uncached ones."""

from __future__ import annotations

import numpy as np
import pytest

from plugin.building.judge import EQUAL_DB, psnr


def test_psnr_is_that_of_the_mean_square_and_bounded():
    picture = np.full((1, 4, 4, 3), 100, dtype=np.uint8)
    assert psnr(picture, picture + 5) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(picture, picture) == EQUAL_DB
