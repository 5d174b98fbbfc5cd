"""The fields that have to do with pictures, together: which task they ask for, and what follows from them."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plugin.config import ModelConfig
from plugin.limits import Limits
from plugin.request import GenerationRequest, InvalidRequest, parse_request
from plugin.sizing import is_stretched, size_like
from plugin.tasks import Traits, tasks_of
from tests.support.paths import REPOSITORY

EMOJI = ModelConfig.from_folder(REPOSITORY / "emoji_stream")
VIDEO = Limits(max_size=832, max_frames=9, frames_multiple=4)


def file_of(width: int, height: int, frames: int = 1) -> bytes:
    file = io.BytesIO()
    pictures = [Image.fromarray(np.full((height, width, 3), 20 * i, np.uint8)) for i in range(frames)]
    pictures[0].save(file, "WEBP", lossless=True, save_all=frames > 1, append_images=pictures[1:])
    return file.getvalue()


def parse(pipeline: str = "FluxPipeline", limits: Limits = EMOJI.limits, **values: Any) -> GenerationRequest:
    tasks = tasks_of(pipeline, Traits())
    return parse_request({"prompt": b"a cat", **values}, EMOJI.defaults, limits, 0, EMOJI.presets, tasks)


def test_a_request_without_pictures_is_as_before():
    request = parse()
    assert (request.pictures, request.mask, request.strength, request.num_steps) == ((), None, None, 50)
    assert request.task is not None
    assert request.task.pipeline == "FluxPipeline"
    assert request.file_bytes == 0


def test_pictures_and_a_mask_choose_the_task():
    picture = file_of(64, 64)
    image = parse(input_image=[picture])
    inpainting = parse(input_image=[picture], mask_image=[picture])
    assert image.task is not None
    assert inpainting.task is not None
    assert (image.task.pipeline, inpainting.task.pipeline) == ("FluxImg2ImgPipeline", "FluxInpaintPipeline")
    assert (image.strength, image.num_steps) == (0.6, 30), "the pipeline's own"
    assert inpainting.file_bytes == 2 * len(picture)


def test_files_may_be_base64_with_line_breaks_or_in_a_data_url():
    picture = file_of(40, 64)
    for given in (
        base64.b64encode(picture),
        base64.encodebytes(picture),
        b"data:image/webp;base64," + base64.b64encode(picture),
    ):
        assert parse(input_image=[given]).pictures[0].file == picture


@pytest.mark.parametrize(
    ("picture", "asked", "made"),
    [
        ((64, 96), {}, (96, 64)),
        ((100, 75), {}, (72, 96)),  # to the nearest multiple of 8
        ((4000, 3000), {}, (96, 128)),  # down to max_size
        ((3000, 30), {}, (32, 128)),  # and no side below min_size
        ((10, 12), {}, (40, 32)),  # up to min_size
        ((64, 96), {"height": 48, "width": 80}, (48, 80)),
        ((64, 128), {"height": 64}, (64, 32)),
        ((64, 128), {"width": 48}, (96, 48)),
    ],
)
def test_the_size_follows_the_picture_where_the_request_says_none(picture, asked, made):
    request = parse(input_image=[file_of(*picture)], **asked)
    assert (request.height, request.width) == made


def test_a_large_picture_is_followed_up_to_the_models_area():
    limits = Limits(max_followed_pixels=1 << 20)
    assert size_like(4032, 3024, limits) == (880, 1184)
    assert size_like(1024, 1024, limits) == (1024, 1024)
    assert size_like(640, 480, limits) == (480, 640)


def test_what_looks_stretched():
    assert not is_stretched(100, 75, 96, 72)
    assert not is_stretched(4032, 3024, 1184, 880)
    assert is_stretched(64, 96, 64, 64)


def test_an_animation_or_files_are_the_frames_of_a_video():
    one = parse("WanPipeline", VIDEO, input_image=[file_of(64, 64, 7)])
    assert (one.num_frames, one.num_steps) == (5, 40), "1 + a multiple of 4; 0.8 of 50 steps"
    several = parse("WanPipeline", VIDEO, input_image=[file_of(64, 64)] * 6, num_frames=1)
    assert several.num_frames == 1
    assert parse("WanPipeline", VIDEO, input_image=[file_of(64, 64)]).num_frames == 1
    assert parse("WanPipeline", VIDEO, input_image=[file_of(64, 64, 30)]).num_frames == 9, "at most max_frames"


@pytest.mark.parametrize(
    ("pipeline", "values", "message"),
    [
        ("FluxPipeline", {"input_image": [2]}, "input_image has 2 files, must have 0 or 1 of them"),
        ("FluxPipeline", {"mask_image": [1]}, "input_image is missing, must have 1 files: a mask_image is given"),
        ("FluxPipeline", {"strength": 0.5}, "strength is 0.5, must be left out: there is no input_image"),
        ("FluxFillPipeline", {}, "input_image is missing, must have 1 files: this model begins with a picture"),
        ("FluxFillPipeline", {"input_image": [1]}, "mask_image is missing, must be a PNG, JPEG or WebP file"),
        ("FluxKontextPipeline", {"input_image": [1], "mask_image": [1]}, "mask_image is given, must be left out: this"),
        (
            "FluxKontextPipeline",
            {"input_image": [1], "strength": 0.5},
            "strength is 0.5, must be left out: FluxK",
        ),
        ("DiTPipeline", {"input_image": [1]}, "input_image is given, must be left out: this model takes no picture"),
        ("FluxControlPipeline", {"input_image": [3]}, "input_image has 3 files, must have 1 or 2 of them"),
        ("WanImageToVideoPipeline", {"input_image": [3]}, "input_image has 3 files, must have 1 or 2 of them"),
        (
            "FluxPipeline",
            {"input_image": [1], "strength": 0.0},
            "strength is 0, must leave at least 1 of 50",
        ),
        (
            "FluxFillPipeline",
            {"input_image": [1], "mask_image": [1], "negative_prompt": b"x"},
            "FluxFillPipeline takes none",
        ),
    ],
)
def test_what_a_model_does_not_take_is_refused_with_what_it_takes(pipeline, values, message):
    given = {name: [file_of(64, 64)] * value[0] if name.endswith("image") else value for name, value in values.items()}
    with pytest.raises(InvalidRequest, match=message):
        parse(pipeline, **given)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_image": [file_of(64, 64, 3)]}, "input_image is an animation of 3 frames, must be a still picture"),
        (
            {"input_image": [file_of(64, 64)], "mask_image": [file_of(64, 32)]},
            "mask_image is 64 x 32, must be 64 x 64 as input_image is",
        ),
        ({"input_image": []}, "input_image has 0 files, must have from 1 to 16"),
        ({"input_image": [b""]}, "input_image has 0 bytes, must have from 1 to 20971520"),
        ({"input_image": [b"%%%"]}, "input_image is neither a PNG, JPEG or WebP file nor one in base64"),
        ({"mask_image": [file_of(64, 64)] * 2}, "mask_image has 2 files, must have 1"),
    ],
)
def test_files_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(InvalidRequest, match=message):
        parse(**values)


def test_pictures_that_a_pipeline_does_not_take_are_refused_before_it_runs():
    """`Flux2ImageProcessor.check_image_input`: 64 pixels, and a ratio of 8."""
    for size, message in (
        ((63, 80), "input_image is 63 x 80, must have at least 64 pixels on each side"),
        ((520, 64), "input_image is 520 x 64, must be at most 8 times as long on one side"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            parse("Flux2Pipeline", input_image=[file_of(64, 64), file_of(*size)])
    assert len(parse("Flux2Pipeline", input_image=[file_of(512, 64)]).pictures) == 1


def test_frames_that_a_video_does_not_have_are_refused():
    with pytest.raises(InvalidRequest, match="num_frames is 9, must be at most 5, the frames of input_image"):
        parse("WanPipeline", VIDEO, input_image=[file_of(64, 64, 5)], num_frames=9)


def test_a_model_may_have_a_strength_of_its_own():
    defaults = replace(EMOJI.defaults, strength=0.3)
    values = {"prompt": b"a cat", "input_image": [file_of(64, 64)]}
    tasks = tasks_of("FluxPipeline")
    assert parse_request(values, defaults, EMOJI.limits, 0, None, tasks).strength == 0.3
    assert parse_request({"prompt": b"a cat"}, defaults, EMOJI.limits, 0, None, tasks).strength is None
