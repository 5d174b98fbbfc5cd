"""What a request may say, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.config import ModelConfig
from plugin.limits import Limits
from plugin.request import InvalidRequest, ResponseFormat, parse_request
from taylorseer import CacheConfig

CONFIG = ModelConfig.from_parameters({"pipeline": "hub/id", "max_steps": "200", "size_multiple": "16"}, Path())


def parse(**values):
    return parse_request({"prompt": b"a cat"} | values, CONFIG.defaults, CONFIG.limits, random_seed=42)


def test_defaults_fill_what_is_left_out():
    request = parse()
    assert (request.prompt, request.seed, request.num_inference_steps) == ("a cat", 42, 50)
    assert request.cache == CONFIG.defaults.cache
    assert request.response_format is ResponseFormat.RAW
    assert request.deadline_ms is None


def test_given_values_are_taken():
    request = parse(
        seed=7,
        height=32,
        width=64,
        cache_interval=3,
        cache_predictor=b"reuse",
        response_format=b"b64_json",
        preview=True,
    )
    assert (request.seed, request.height, request.width, request.preview) == (7, 32, 64, True)
    assert (request.cache.interval, request.cache.predictor) == (3, "reuse")
    assert request.response_format is ResponseFormat.B64_JSON


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": None}, "prompt is missing, must be 1 to 8192 bytes of UTF-8"),
        ({"prompt": b""}, "prompt is empty, must be 1 to 8192 bytes"),
        ({"prompt": b"  \t\n "}, "prompt is empty, must be 1 to 8192 bytes"),
        ({"prompt": "\u3000\u00a0".encode()}, "prompt is empty, must be 1 to 8192 bytes"),
        ({"prompt": b"", "negative_prompt": b"x"}, "prompt is empty, must be 1 to 8192 bytes"),
        ({"prompt": b"\xff"}, "prompt is invalid at byte 0, must be UTF-8 text"),
        ({"prompt": b"a\0b"}, "prompt has a NUL character"),
        ({"prompt": b"x" * 10**6}, "prompt is 1000000 bytes long, must be at most 8192 bytes"),
        ({"negative_prompt": b"\xc3("}, "negative_prompt is invalid at byte 0"),
        ({"class_label": 3}, "class_label is 3 beside a prompt, must be left out"),
        ({"prompt": None, "class_label": 3}, "class_label is 3, must be left out: this model takes a prompt"),
        ({"seed": -1}, "seed is -1, must be from 0 to 9223372036854775807"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0, must be from 1 to 200"),
        ({"num_inference_steps": -1}, "num_inference_steps is -1, must be from 1 to 200"),
        ({"num_inference_steps": 10_000}, "num_inference_steps is 10000, must be from 1 to 200"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan, must be a finite number from 0.0 to 100.0"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"height": 0}, "height is 0, must be a multiple of 16 from 16 to 2048"),
        ({"height": 40}, "height is 40, must be a multiple of 16"),
        ({"width": 10**6}, "width is 1000000, must be a multiple of 16 from 16 to 2048"),
        ({"num_frames": 2}, "num_frames is 2, must be 1: this model makes pictures"),
        ({"cache_interval": 0}, "cache_interval is 0, must be an integer from 1 to 1000"),
        ({"cache_order": -1}, "cache_order is -1, must be an integer from 0 to 8"),
        ({"cache_order": 9}, "cache_order is 9, must be an integer from 0 to 8"),
        ({"cache_warmup_steps": -1}, "cache_warmup_steps is -1"),
        ({"cache_schedule": b"4 9"}, "cache_schedule is '4 9', must be one of: interval, even, or steps from 0 on"),
        ({"cache_cooldown_steps": -1}, "cache_cooldown_steps is -1"),
        ({"cache_predictor": b"magic"}, "cache_predictor is 'magic', must be one of: taylor, reuse, newton"),
        ({"cache_max_error": float("nan")}, "cache_max_error is nan"),
        ({"deadline_ms": 0}, "deadline_ms is 0, must be from 1 to 86400000"),
        ({"response_format": b"gif"}, "response_format is 'gif', must be one of: raw, b64_json"),
    ],
)
def test_bad_values_are_named_with_their_range(values, message):
    given = {name: value for name, value in ({"prompt": b"a cat"} | values).items() if value is not None}
    with pytest.raises(InvalidRequest, match=message.replace("(", r"\(")):
        parse_request(given, CONFIG.defaults, CONFIG.limits, random_seed=0)


def test_models_of_a_class_label_take_no_prompt():
    limits = Limits(takes_prompt=False, num_classes=10)
    assert parse_request({"class_label": 3}, CONFIG.defaults, limits, 0).class_label == 3
    for values, message in (
        ({}, "class_label is missing, must be from 0 to 9"),
        ({"class_label": 10}, "class_label is 10, must be from 0 to 9"),
        ({"prompt": b"a cat"}, "prompt is given, must be left out: this model takes a class_label"),
        ({"class_label": 3, "negative_prompt": b"x"}, "negative_prompt is given, must be left out: this model takes"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            parse_request(values, CONFIG.defaults, limits, 0)


def test_models_of_videos_take_as_many_frames_as_their_autoencoder_can():
    limits = Limits(max_frames=81, frames_multiple=4)

    def frames(**values):
        return parse_request({"prompt": b"a cat", **values}, CONFIG.defaults, limits, 0).num_frames

    assert (frames(), frames(num_frames=17), frames(num_frames=81)) == (1, 17, 81)
    for wrong in (0, 16, 85, -3):
        with pytest.raises(InvalidRequest, match=rf"num_frames is {wrong}, must be 1 \+ a multiple of 4 from 1 to 81"):
            frames(num_frames=wrong)


def test_a_preset_is_chosen_by_name_and_what_is_said_beside_it_wins():
    presets = {"paper": CacheConfig(interval=6, order=2, warmup_steps=3)}

    def cache(**values):
        return parse_request({"prompt": b"a cat", **values}, CONFIG.defaults, CONFIG.limits, 0, presets).cache

    assert cache(cache_preset=b"paper") == presets["paper"]
    assert cache(cache_preset=b"paper", cache_interval=4) == CacheConfig(interval=4, order=2, warmup_steps=3)
    assert cache(cache_preset=b"default") == cache() == CONFIG.defaults.cache
    presets["default"] = CacheConfig(interval=4, order=3)
    assert cache() == CONFIG.defaults.cache, "who says nothing gets the model's choice"
    assert cache(cache_preset=b"default") == presets["default"]
    assert cache(cache_warmup_steps=2) == CacheConfig(interval=4, order=3, warmup_steps=2), "who says some, its own"
    with pytest.raises(InvalidRequest, match="cache_preset is 'fast', must be one of: default, paper"):
        cache(cache_preset=b"fast")


@pytest.mark.parametrize("blank", [b"", b" ", b"\n\t", "\u3000".encode()])
def test_a_negative_prompt_of_blanks_is_none(blank):
    assert parse(negative_prompt=blank) == parse()
    assert parse(negative_prompt=b" blue ").negative_prompt == " blue "
