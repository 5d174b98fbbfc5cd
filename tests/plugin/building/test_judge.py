"""Comparing pictures with the uncached ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from plugin.building.judge import EQUAL_DB, Judge, psnr
from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.serving.plan import architecture_of_pipe, example_request
from tests.support.tiny.pictures import CASES, picture


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


def test_a_request_with_a_picture_is_judged_as_it_is(tmp_path):
    """Image to image at half the strength runs the last 5 of 10 steps, and does not begin from text."""
    case = CASES["flux image to image"]
    host = PipelineHost(case.make(tmp_path))
    config = ModelConfig.from_parameters({"pipeline": "hub/id", **case.parameters}, tmp_path)
    file = io.BytesIO()
    picture(32, 32).save(file, "PNG")
    asked = {"prompt": "a red apple", "num_inference_steps": 10}
    tasks = architecture_of_pipe(host.pipe).tasks
    shown = example_request(config, tasks, input_image=[file.getvalue()], strength=0.5, **asked)
    judge, text = (Judge(host, [each], 16) for each in (shown, example_request(config, **asked)))
    assert (judge.num_steps, text.num_steps) == (5, 10)
    assert (judge.uncached[0] != text.uncached[0]).any()
