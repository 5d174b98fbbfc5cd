"""Comparing pictures with the uncached ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugin.building.judge import EQUAL_DB, Judge, psnr
from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.serving.plan import example_request
from tests.support.tiny.pictures import CASES


def test_psnr_is_that_of_the_mean_square_and_bounded():
    picture = np.full((1, 4, 4, 3), 100, dtype=np.uint8)
    assert psnr(picture, picture + 5) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(picture, picture) == EQUAL_DB


def judged(name: str, folder: Path) -> Judge:
    case = CASES[name]
    config = ModelConfig.from_parameters({"pipeline": "hub/id", **case.parameters}, folder)
    request = example_request(config, prompt="a red apple", num_inference_steps=2, height=32, width=64)
    return Judge(PipelineHost(case.make(folder)), [request], config.max_sequence_length)


def test_a_pipeline_that_can_take_pictures_is_judged_from_text_at_the_size_that_is_asked_for(tmp_path):
    """Kontext would make a megapixel otherwise."""
    assert judged("flux kontext", tmp_path).uncached[0].shape == (1, 32, 64, 3)


def test_a_pipeline_that_begins_with_a_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pipeline is a FluxFillPipeline, must be one that needs no picture"):
        judged("flux fill", tmp_path)
