"""The limits and defaults of models as the widgets' ranges."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support.comfyui.behaviours import NOWHERE
from tests.support.comfyui.inputs import inputs_of
from tests.support.comfyui.prompts import pictures_of
from tests.support.fake_triton import Failure, fake_triton

EMOJI = {
    "max_size": "128",
    "min_size": "32",
    "size_multiple": "8",
    "height": "64",
    "width": "96",
    "num_inference_steps": "40",
    "guidance_scale": "3.0",
    "max_steps": "500",
    "cache_preset": "tuned-12",
}
DESCRIPTION = {"pipeline": "FluxPipeline", "tasks": [{"strength": None}, {"strength": 0.6}, {"strength": 0.6}]}


def options(ui, kind):
    return {name: each.options for name, each in inputs_of(ui.nodes[f"TritonTaylorSeer{kind}"]).items()}


def test_the_widgets_have_the_models_limits_and_defaults(start):
    with fake_triton(parameters=EMOJI, models=("emoji",), description=DESCRIPTION) as url:
        ui = start(url)
        of_text, of_picture, of_server = (options(ui, kind) for kind in ("TextToImage", "ImageToImage", "Server"))
    assert [of_text["width"][key] for key in ("default", "min", "max", "step")] == [96, 32, 128, 8]
    assert [of_text["height"][key] for key in ("default", "min", "max", "step")] == [64, 32, 128, 8]
    assert [of_text["num_inference_steps"][key] for key in ("default", "min", "max")] == [40, 1, 500]
    assert of_text["guidance_scale"]["default"] == 3.0
    assert of_text["seed"]["control_after_generate"] is True
    assert [of_picture["height"][key] for key in ("default", "min", "max")] == [0, 0, 128]
    assert of_picture["strength"]["default"] == 0.6
    assert of_server["url"]["default"] == url
    assert of_server["model"]["default"] == "emoji"
    assert "tuned-12" in options(ui, "Cache")["cache_preset"]["tooltip"]


def test_without_a_server_they_are_wide(ui):
    of_text = options(ui, "TextToImage")
    assert [of_text["width"][key] for key in ("default", "min", "max", "step")] == [1024, 8, 16384, 8]
    assert of_text["num_inference_steps"]["max"] == 1000
    assert options(ui, "TextToVideo")["num_frames"]["max"] == 10000
    assert "no server has answered" in options(ui, "Server")["model"]["tooltip"]


def test_a_server_that_starts_later_is_found_when_the_nodes_are_asked_for_again(module):
    settings = module("settings")
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        known = module("known").Known(settings.Settings(urls=(f"127.0.0.1:{kept.getsockname()[1]}",)), fresh_s=0)
        assert known.published().limits == {}
    with fake_triton(parameters=EMOJI) as url:
        known.settings = settings.Settings(urls=(url,))
        assert known.published().limits["emoji"].max_size == 128
    assert known.published().limits["emoji"].max_size == 128, "what was known stays known"


def test_the_next_server_is_asked_where_the_first_does_not_answer(start):
    with fake_triton(parameters=EMOJI) as url:
        assert options(start(f"{NOWHERE}, {url}"), "TextToImage")["width"]["max"] == 128


def test_the_environment_chooses_the_default_model(start):
    with fake_triton(parameters=EMOJI, models=("emoji", "flux")) as url:
        assert options(start(url, TRITON_TAYLORSEER_MODEL="flux"), "Server")["model"]["default"] == "flux"
        assert options(start(url), "Server")["model"]["default"] == "emoji"


def test_a_model_that_does_not_tell_its_tasks_has_its_limits(start):
    with fake_triton(parameters=EMOJI, description=Failure("INTERNAL", "no")) as url:
        ui = start(url)
        assert options(ui, "TextToImage")["width"]["max"] == 128
        assert options(ui, "ImageToImage")["strength"]["default"] == 0.0


def test_a_model_of_another_kind_leaves_the_wide_limits(start):
    with fake_triton(parameters={"max_size": "10 MB"}) as url:
        ui = start(url)
        assert options(ui, "TextToImage")["width"]["max"] == 16384
        run = ui.run(pictures_of(ui, "TextToImage", url, prompt="star"))
    assert str(run.error).startswith("the model's parameters cannot be read, must be triton-taylorseer's: ")


def test_a_server_that_is_silent_holds_nodes_up_for_a_second_once_and_not_again(start):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ui = start(f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        options(ui, "TextToImage")
        assert 0.9 < time.monotonic() - began < 3
        began = time.monotonic()
        ui.object_info()
        assert time.monotonic() - began < 0.5


@pytest.fixture
def published(module):
    of = module("limits").Limits.of
    limits = {
        "emoji": of({"max_size": "128", "min_size": "32", "size_multiple": "8", "num_inference_steps": "50"}),
        "flux": of({"max_size": "2048", "size_multiple": "16", "num_inference_steps": "28"}),
        "wan": of({"max_frames": "81", "num_frames": "33", "frames_multiple": "4", "max_size": "1280"}),
        "ltx": of({"max_frames": "257", "num_frames": "161", "frames_multiple": "8"}),
    }
    return module("known").Published("emoji", limits)


def test_ranges_hold_what_every_model_accepts_and_defaults_are_of_the_default_one(published):
    """A node cannot know which of them a workflow connects to it."""
    limits = published.widgets()
    assert (limits.min_size, limits.max_size, limits.size_multiple) == (16, 2048, 8)
    assert limits.num_inference_steps == 50


def test_those_of_videos_are_of_the_models_of_videos(published):
    limits = published.widgets(of_videos=True)
    assert (limits.max_frames, limits.frames_multiple, limits.num_frames) == (257, 4, 33)
    assert limits.max_size == 2048
