"""The ComfyUI nodes with models of videos and of several pictures: tiny pipelines on a real Triton."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.comfyui.executor import Executor
from tests.support.comfyui.inputs import inputs_of
from tests.support.comfyui.loading import comfyui
from tests.support.comfyui.prompts import given, pictures_of
from tests.support.comfyui.workflows import EXAMPLES
from tests.support.repository import write_pair
from tests.support.serving import Triton, running
from tests.support.tiny.pictures import CASES
from tests.support.tiny.pictures import picture as made_up

SERVED = {"wan": "wan video to video", "wan_i2v": "wan first and last frame", "kontext": "flux kontext, three pictures"}
SIZE = {"width": 48, "height": 32}
FIELDS: dict[str, Any] = {"prompt": "a red apple", "seed": 3, "num_inference_steps": 4, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("videos")
    common = {"engine": "torch", "torch_threads": "1"}
    for model, name in SERVED.items():
        CASES[name].make(tmp_path_factory.mktemp(model)).save_pretrained(folder / model)
        parameters = {"pipeline": str(folder / model), **common, "max_frames": "1", **CASES[name].parameters}
        write_pair(folder / "models", model, parameters)
    with running(folder / "models", extra_args=("--exit-timeout-secs=5",)) as triton:
        yield triton


@pytest.fixture(scope="module")
def ui(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    folder = tmp_path_factory.mktemp("comfyui") / "ComfyUI"
    with comfyui(folder, {"TRITON_TAYLORSEER_URL": triton.grpc_url}) as ui:
        yield ui


def frames(count: int) -> np.ndarray:
    """(count, 32, 48, 3) uint8."""
    return np.stack([np.asarray(made_up(48, 32, seed)) for seed in range(count)])


def video_of(ui: Executor, triton: Triton, kind: str, sockets: dict[str, np.ndarray], **inputs: Any) -> Any:
    """(frames, fps, report) of a node."""
    prompt: dict[str, Any] = {}
    for name, pictures in sockets.items():
        inputs[name] = given(ui, prompt, "IMAGE", name, torch.from_numpy(pictures.astype(np.float32) / 255))
    run = ui.run(prompt | pictures_of(ui, kind, triton.grpc_url, **inputs))
    return run.output("make"), run.output("make", 1), run.output("make", 2)


def assert_is(images: torch.Tensor, pictures: np.ndarray) -> None:
    assert np.array_equal(images.numpy(), pictures.astype(np.float32) / np.float32(255))


def test_text_to_video_is_bit_for_bit_what_the_client_gets_with_its_frames_a_second(triton: Triton, ui: Executor):
    images, fps, report = video_of(ui, triton, "TextToVideo", {}, model="wan", **FIELDS, **SIZE, num_frames=5)
    with triton.client("wan") as client:
        result = client.generate(**FIELDS, **SIZE, num_frames=5)
    assert images.shape == (5, 32, 48, 3)
    assert_is(images, result.image)
    assert fps == result.report["fps"] == 16.0
    assert json.loads(report)[0]["report"]["num_frames"] == 5


def test_image_to_video_begins_with_one_picture_and_ends_with_another(triton: Triton, ui: Executor):
    first, last = frames(2)[:1], frames(2)[1:]
    inputs = {"model": "wan_i2v", **FIELDS, "num_frames": 5}
    images, fps, _ = video_of(ui, triton, "ImageToVideo", {"image": first, "last_image": last}, **inputs)
    with triton.client("wan_i2v") as client:
        result = client.generate(**FIELDS, num_frames=5, input_image=[first[0], last[0]])
    assert images.shape == (5, 32, 48, 3)
    assert_is(images, result.image)
    assert fps == 16.0


def test_the_frames_of_a_video_go_in_as_a_batch(triton: Triton, ui: Executor):
    inputs = {"model": "wan", **FIELDS, "strength": 0.5, "num_frames": 0}
    images, _, report = video_of(ui, triton, "ImageToVideo", {"image": frames(5)}, **inputs)
    with triton.client("wan") as client:
        result = client.generate(**FIELDS, strength=0.5, input_image=[*frames(5)])
    assert images.shape == (5, 32, 48, 3)
    assert_is(images, result.image)
    assert json.loads(report)[0]["report"]["num_steps"] == 2


def test_several_pictures_for_one_result_are_the_clients(triton: Triton, ui: Executor):
    pictures = frames(3)
    prompt: dict[str, Any] = {}
    sockets = {
        name: given(ui, prompt, "IMAGE", name, torch.from_numpy(pictures[[place]].astype(np.float32) / 255))
        for place, name in enumerate(("image", "image_2", "image_3"))
    }
    run = ui.run(
        prompt | pictures_of(ui, "ImageToImage", triton.grpc_url, model="kontext", **FIELDS, **sockets, strength=0.0)
    )
    with triton.client("kontext") as client:
        assert_is(run.output("make"), client.generate(**FIELDS, input_image=[*pictures]).image)


def test_a_model_of_videos_makes_a_picture_where_one_is_asked_for(triton: Triton, ui: Executor):
    run = ui.run(pictures_of(ui, "TextToImage", triton.grpc_url, model="wan", **FIELDS, **SIZE))
    assert run.output("make").shape == (1, 32, 48, 3)


def test_the_widgets_of_videos_have_the_limits_of_the_models_of_videos(ui: Executor):
    frames_of = inputs_of(ui.nodes["TritonTaylorSeerTextToVideo"])["num_frames"].options
    assert (frames_of["min"], frames_of["step"]) == (1, 4)
    assert 1 < frames_of["max"] < 10_000


def test_frames_out_of_range_are_refused_with_the_range(triton: Triton, ui: Executor):
    for model, count, sentence in (
        ("wan", 6, "num_frames is 6, must be 1 + a multiple of 4 from 1 to "),
        ("kontext", 5, "num_frames is 5, must be 1: the model makes pictures"),
    ):
        prompt = pictures_of(
            ui, "TextToVideo", triton.grpc_url, model=model, **FIELDS, width=64, height=32, num_frames=count
        )
        assert sentence in str(ui.run(prompt).error)


def test_the_example_workflow_makes_a_video_of_its_frames_a_second(triton: Triton, ui: Executor):
    """With a tiny model in place of Wan2.1, and a size for it."""
    prompt = json.loads(Path(EXAMPLES / "api/text_to_video.json").read_text(encoding="utf-8"))
    prompt["1"]["inputs"] |= {"url": triton.grpc_url, "model": "wan"}
    prompt["2"]["inputs"] |= {**SIZE, "num_frames": 5, "num_inference_steps": 3}
    run = ui.run(prompt)
    assert run.ended == "execution_success", run.error
    (video,) = run.ui["4"]["videos"]
    assert video.frames.shape == (5, 32, 48, 3)
    assert video.fps == 16.0
