"""What is refused before a workflow begins, and what is held to a model before it is sent."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from plugin.fields import MAX_SEED
from plugin.parameters import PARAMETERS
from taylorseer import COORDINATES, PREDICTORS
from tests.support.comfyui.prompts import node, pictures_of
from tests.support.comfyui.validation import Invalid
from triton_taylorseer_client import InvalidArgument

EMOJI = {"max_size": "128", "min_size": "32", "size_multiple": "8", "guidance_scale": "3.0"}


@pytest.mark.parametrize(
    ("widget", "value", "sentence"),
    [
        ("num_inference_steps", 0, "num_inference_steps is 0, must be an integer from 1 to 1000"),
        ("num_inference_steps", 1001, "num_inference_steps is 1001, must be an integer from 1 to 1000"),
        ("num_inference_steps", 7.5, "num_inference_steps is 7.5, must be an integer from 1 to 1000"),
        ("num_inference_steps", True, "num_inference_steps is True, must be an integer from 1 to 1000"),
        ("seed", -1, f"seed is -1, must be an integer from 0 to {MAX_SEED}"),
        ("seed", MAX_SEED + 1, f"seed is {MAX_SEED + 1}, must be an integer from 0 to {MAX_SEED}"),
        ("guidance_scale", -0.5, "guidance_scale is -0.5, must be a number from 0 to 100"),
        ("guidance_scale", math.nan, "guidance_scale is nan, must be a number from 0 to 100"),
        ("guidance_scale", "3", "guidance_scale is '3', must be a number from 0 to 100"),
        ("width", -8, "width is -8, must be an integer from 1 to 16384"),
        ("height", 1 << 15, "height is 32768, must be an integer from 1 to 16384"),
        ("batch_size", 0, "batch_size is 0, must be an integer from 1 to 64"),
        ("batch_size", 65, "batch_size is 65, must be an integer from 1 to 64"),
        ("class_label", -2, "class_label is -2, must be an integer from 0 to"),
        ("prompt", 5, "prompt is 5, must be a text of at most 1048576 bytes of UTF-8"),
    ],
)
def test_a_widget_out_of_every_models_range_is_refused_before_the_run(ui, widget, value, sentence):
    with pytest.raises(Invalid) as refusal:
        ui.run(pictures_of(ui, "TextToImage", "127.0.0.1:1", **{"prompt": "star", widget: value}))
    (message,) = refusal.value.errors["make"]
    assert message.startswith(sentence)


@pytest.mark.parametrize(
    ("widget", "value", "sentence"),
    [
        ("cache_interval", 1001, "cache_interval is 1001, must be an integer from 1 to 1000"),
        ("cache_order", 9, "cache_order is 9, must be an integer from 0 to 8"),
        ("cache_warmup_steps", -2, "cache_warmup_steps is -2, must be an integer from 0 to 1000"),
        ("cache_predictor", "guess", "cache_predictor is 'guess', must be one of: taylor, "),
        ("cache_coordinate", "x", "cache_coordinate is 'x', must be one of: step, sigma, log_snr"),
        ("cache_max_error", -1.0, "cache_max_error is -1.0, must be a finite number above 0"),
        ("cache_max_error", math.inf, "cache_max_error is inf, must be a finite number above 0"),
        ("cache_preset", "x" * 65, "cache_preset is "),
    ],
)
def test_so_is_a_setting_of_the_cache(ui, widget, value, sentence):
    with pytest.raises(Invalid) as refusal:
        ui.run(pictures_of(ui, "TextToImage", "127.0.0.1:1", cache={widget: value}, prompt="star"))
    (message,) = refusal.value.errors["cache"]
    assert message.startswith(sentence)


def test_urls_and_models_are_refused_before_the_run(ui):
    for widgets, sentence in (
        ({"url": " \n"}, "url is empty, must have a HOST:PORT"),
        ({"url": "localhost:8001\nlocalhost"}, "url is 'localhost', must be HOST:PORT"),
        ({"url": "localhost:8001", "model": " "}, "model is empty, must be the name of a served model"),
    ):
        prompt = pictures_of(ui, "TextToImage", "x", prompt="star") | {"server": node(ui, "Server", **widgets)}
        with pytest.raises(Invalid) as refusal:
            ui.run(prompt)
        assert refusal.value.errors["server"][0].startswith(sentence)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"height": 60}, "height is 60, must be a multiple of 8 from 32 to 128"),
        ({"width": 136}, "width is 136, must be a multiple of 8 from 32 to 128"),
        ({"num_frames": 5}, "num_frames is 5, must be 1: the model makes pictures"),
        ({"strength": 1.5}, "strength is 1.5, must be a number above 0, up to 1"),
        ({"prompt": "é" * 4097}, "prompt is .*, must be a text of at most 8192 bytes of UTF-8"),
    ],
)
def test_a_request_is_held_to_the_models_own_limits(module, given, sentence):
    limits = module("limits").Limits.of(EMOJI)
    with pytest.raises(InvalidArgument, match=sentence):
        module("checks").check(given, limits)


def test_frames_of_a_video_are_one_and_a_multiple(module):
    limits = module("limits").Limits.of({"max_frames": "17", "frames_multiple": "8"})
    for frames in (1, 9, 17):
        module("checks").check({"num_frames": frames}, limits)
    for frames in (0, 8, 10, 25):
        with pytest.raises(
            InvalidArgument, match=f"num_frames is {frames}, must be 1 \\+ a multiple of 8 from 1 to 17"
        ):
            module("checks").check({"num_frames": frames}, limits)


def test_widgets_that_say_so_leave_their_fields_out(module):
    fields_of = module("checks").fields_of
    left_out = {
        "prompt": " ",
        "negative_prompt": "",
        "height": 0,
        "strength": 0.0,
        "class_label": -1,
        "cache_interval": 0,
        "cache_order": -1,
        "cache_warmup_steps": -1,
        "cache_predictor": "as the preset",
        "cache_schedule": "",
        "cache_max_error": 0,
    }
    assert fields_of(left_out) == {}
    kept = {"seed": 0, "guidance_scale": 0.0, "cache_order": 0, "cache_warmup_steps": 0, "class_label": 0}
    assert fields_of(kept) == kept


def test_the_copies_of_the_servers_numbers_are_the_servers(module):
    """The nodes are installed without the server, and so write them down once more."""
    checks, limits = module("checks"), module("limits").Limits()
    assert checks.MAX_SEED == MAX_SEED
    assert set(checks.PREDICTORS) == set(PREDICTORS)
    assert set(checks.COORDINATES) == set(COORDINATES)
    for each in fields(limits):
        assert getattr(limits, each.name) == PARAMETERS[each.name].default, each.name
