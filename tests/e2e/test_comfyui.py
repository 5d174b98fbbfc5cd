"""The ComfyUI nodes against a real Triton, behind the stand-in of ComfyUI's interface: what the Python client gets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.comfyui.executor import Executor, Run
from tests.support.comfyui.inputs import inputs_of
from tests.support.comfyui.loading import comfyui
from tests.support.comfyui.prompts import given, node, pictures_of
from tests.support.comfyui.workflows import EXAMPLES, read
from tests.support.serving import Triton
from tests.support.waiting import wait_for

QUICK: dict[str, Any] = {"num_inference_steps": 10, "seed": 7, "guidance_scale": 3.0}
SIZE = {"width": 64, "height": 64}
NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def ui(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """A ComfyUI that was told of the server."""
    with comfyui(tmp_path_factory.mktemp("comfyui") / "ComfyUI", {"TRITON_TAYLORSEER_URL": triton.grpc_url}) as ui:
        yield ui


@pytest.fixture(scope="module")
def apple(triton: Triton) -> np.ndarray:
    """(64, 64, 3) uint8."""
    with triton.client() as client:
        return client.generate("red apple, 3d", seed=7, num_inference_steps=20).image[0]


def tensor_of(pictures: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 as ComfyUI has pictures."""
    return torch.from_numpy(pictures.astype(np.float32) / np.float32(255))


def assert_is(images: torch.Tensor, pictures: np.ndarray) -> None:
    """Bit for bit: (B, H, W, 3) uint8, each level divided by 255 in float32."""
    assert images.dtype == torch.float32
    assert np.array_equal(images.numpy(), pictures.astype(np.float32) / np.float32(255))


def test_the_widgets_have_the_limits_of_the_served_models(ui: Executor):
    options = inputs_of(ui.nodes["TritonTaylorSeerTextToImage"])
    assert [options["width"].options[key] for key in ("default", "min", "max", "step")] == [64, 32, 128, 8]
    assert options["guidance_scale"].options["default"] == 3.0
    assert inputs_of(ui.nodes["TritonTaylorSeerImageToImage"])["strength"].options["default"] == 0.6
    assert inputs_of(ui.nodes["TritonTaylorSeerServer"])["model"].options["default"] == "emoji"


def test_text_to_image_is_what_the_client_gets_for_each_seed_of_a_batch(triton: Triton, ui: Executor):
    """The server packs the requests of a batch, whose sums round otherwise: a level of 255 either way, seldom two."""
    inputs = {"prompt": "lemon, 3d", **QUICK, **SIZE}
    run = ui.run(pictures_of(ui, "TextToImage", triton.grpc_url, **inputs, batch_size=4))
    images = run.output("make")
    with triton.client() as client:
        alone = np.concatenate([client.generate(**{**inputs, "seed": seed}).image for seed in (7, 8, 9, 10)])
    assert images.shape == (4, 64, 64, 3)
    levels = (images.numpy() * 255).round().astype(int)
    assert np.abs(levels - alone).max() <= 2
    assert np.abs(levels[0] - levels[1]).max() > 20, "seeds make different pictures"
    records = json.loads(run.output("make", 1))
    assert [record["report"]["seed"] for record in records] == [7, 8, 9, 10]
    assert [record["fields"]["seed"] for record in records] == [7, 8, 9, 10]


@pytest.mark.parametrize("cache", [None, {"cache_interval": 1}, {"cache_preset": "paper"}, {"cache_order": 0}])
def test_one_picture_is_bit_for_bit_what_the_client_gets(triton: Triton, ui: Executor, cache: dict[str, Any] | None):
    inputs = {"prompt": "sunflower, noto", "negative_prompt": "blue", **QUICK, "width": 96, "height": 64}
    run = ui.run(pictures_of(ui, "TextToImage", triton.grpc_url, cache, **inputs))
    with triton.client() as client:
        result = client.generate(**inputs, **(cache or {}))
    assert_is(run.output("make"), result.image)
    (record,) = json.loads(run.output("make", 1))
    assert record["report"]["full_steps"] == result.report["full_steps"]


def test_a_run_without_a_change_makes_nothing(triton: Triton, ui: Executor):
    prompt = pictures_of(ui, "TextToImage", triton.grpc_url, prompt="moon, flat", **QUICK, **SIZE)
    assert "make" in ui.run(prompt).ran
    before = triton.wait_until_idle()["taylorseer_requests_total ok"]
    assert ui.run(prompt).ran == ["shown"]
    assert triton.wait_until_idle()["taylorseer_requests_total ok"] == before


def test_progress_and_previews_of_the_picture_are_shown(triton: Triton, ui: Executor):
    ui.host.progress.clear()
    inputs = {"prompt": "lemon, 3d", "seed": 5, "num_inference_steps": 100, **SIZE}
    run = ui.run(pictures_of(ui, "TextToImage", triton.grpc_url, {"cache_interval": 1}, **inputs))
    shown = [each for each in ui.host.progress if each.node == "make"]
    assert [each.value for each in shown] == sorted(each.value for each in shown)
    assert (shown[-1].value, shown[-1].total) == (100, 100)
    previews = [np.asarray(each.preview).astype(int) for each in shown if each.preview is not None]
    assert len(previews) >= 2
    result = (run.output("make")[0].numpy() * 255).round()
    distances = [np.abs(preview - result).mean() for preview in previews]
    assert distances[-1] < 10, "the last preview is nearly the picture"
    assert distances[-1] < distances[0]


def test_image_to_image_is_bit_for_bit_what_the_client_gets(triton: Triton, ui: Executor, apple: np.ndarray):
    prompt: dict[str, Any] = {}
    image = given(ui, prompt, "IMAGE", "apple", tensor_of(apple[None]))
    inputs = {"prompt": "lemon, 3d", **QUICK, "strength": 0.6}
    run = ui.run(prompt | pictures_of(ui, "ImageToImage", triton.grpc_url, image=image, **inputs))
    with triton.client() as client:
        result = client.generate(**inputs, input_image=apple)
    assert_is(run.output("make"), result.image)
    assert json.loads(run.output("make", 1))[0]["report"]["num_steps"] == 6


def test_inpaint_repaints_where_the_mask_is_one_and_keeps_the_rest(triton: Triton, ui: Executor, apple: np.ndarray):
    mask = np.zeros((64, 64), np.float32)
    mask[:, :32] = 1
    prompt: dict[str, Any] = {}
    sockets = {
        "image": given(ui, prompt, "IMAGE", "whole apple", tensor_of(apple[None])),
        "mask": given(ui, prompt, "MASK", "left half", torch.from_numpy(mask)[None]),
    }
    inputs = {"prompt": "sunflower, noto", **QUICK, "strength": 1.0}
    run = ui.run(prompt | pictures_of(ui, "Inpaint", triton.grpc_url, **sockets, **inputs))
    with triton.client() as client:
        result = client.generate(**inputs, input_image=apple, mask_image=mask > 0)
    images = run.output("make")
    assert_is(images, result.image)
    # Eight pixels beside the edge belong to both sides: a latent pixel of the autoencoder has that many.
    changed = np.abs((images[0].numpy() * 255).round() - apple).mean(axis=(0, 2))
    painted, kept = changed[:24].mean(), changed[40:].mean()
    assert painted > 3 * kept
    assert kept < 10, "what is kept goes through the autoencoder, and no further"


def test_a_batch_of_pictures_is_edited_each_with_its_own_seed(triton: Triton, ui: Executor, apple: np.ndarray):
    pictures = np.stack([apple, apple[:, ::-1], np.ascontiguousarray(apple[::-1])])
    prompt: dict[str, Any] = {}
    image = given(ui, prompt, "IMAGE", "apples", tensor_of(pictures))
    inputs = {"prompt": "lemon, 3d", **QUICK, "strength": 0.4}
    images = ui.run(prompt | pictures_of(ui, "ImageToImage", triton.grpc_url, image=image, **inputs)).output("make")
    with triton.client() as client:
        alone = [
            client.generate(**{**inputs, "seed": 7 + place}, input_image=np.ascontiguousarray(picture)).image[0]
            for place, picture in enumerate(pictures)
        ]
    assert np.abs((images.numpy() * 255).round() - np.stack(alone)).max() <= 2, "the rounding of packed sums"


def test_an_interrupt_ends_every_request_of_a_batch_on_the_server_at_its_next_step(triton: Triton, ui: Executor):
    before = triton.wait_until_idle()["taylorseer_requests_total cancelled"]
    prompt = pictures_of(
        ui, "TextToImage", triton.grpc_url, {"cache_interval": 1}, prompt="star", num_inference_steps=1000, batch_size=3
    )
    ui.host.progress.clear()
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(ui.run(prompt)), daemon=True)
    thread.start()
    wait_for(lambda: any(each.value >= 9 for each in ui.host.progress), "three requests have made steps")
    began = time.monotonic()
    ui.host.interrupt()
    thread.join(20)
    (run,) = runs
    assert run.ended == "execution_interrupted"
    assert time.monotonic() - began < 5, "a thousand steps take longer"
    metrics = triton.wait_until_idle()
    assert metrics["taylorseer_requests_total cancelled"] - before == 3
    assert metrics["taylorseer_requests_in_flight"] == metrics["taylorseer_cache_bytes"] == 0
    assert max(each.value for each in ui.host.progress) < 1500


def test_a_server_that_is_gone_is_left_out_and_the_next_one_makes_the_picture(triton: Triton, ui: Executor):
    inputs = {"prompt": "lemon, 3d", **QUICK, **SIZE}
    run = ui.run(pictures_of(ui, "TextToImage", f"{NOWHERE}\n{triton.grpc_url}", **inputs))
    with triton.client() as client:
        assert_is(run.output("make"), client.generate(**inputs).image)
    connection = run.output("server")
    assert connection.turns.take() == [triton.grpc_url, NOWHERE]


def test_a_full_queue_is_waited_for(triton: Triton, ui: Executor):
    """`faulty` runs two requests and keeps one waiting: of six some are refused until there is room."""
    inputs = {"prompt": "star", "num_inference_steps": 5, **SIZE, "batch_size": 6, "model": "faulty"}
    run = ui.run(pictures_of(ui, "TextToImage", triton.grpc_url, **inputs))
    assert run.output("make").shape == (6, 64, 64, 3)
    assert triton.metrics("faulty")["taylorseer_requests_total unavailable"] > 0


def test_what_is_wrong_is_said_in_a_sentence(triton: Triton, ui: Executor, apple: np.ndarray):
    prompt: dict[str, Any] = {}
    image = given(ui, prompt, "IMAGE", "an apple", tensor_of(apple[None]))
    for kind, inputs, sentence in (
        ("TextToImage", {"width": 136}, "width is 136, must be a multiple of 8 from 32 to 128"),
        ("TextToImage", {"prompt": ""}, "prompt is missing, must be 1 to 8192 bytes of UTF-8"),
        ("TextToImage", {"class_label": 3}, "class_label is 3 beside a prompt, must be left out"),
        ("TextToImage", {"model": "nobody"}, "unknown model"),
        ("ImageToImage", {"image": image, "image_2": image}, "input_image has 2 files, must have 0 or 1 of them"),
    ):
        run = ui.run(prompt | pictures_of(ui, kind, triton.grpc_url, **{"prompt": "star", **inputs}))
        assert run.ended == "execution_error", (kind, inputs)
        assert sentence in str(run.error)


def test_model_limits_tell_what_is_served(triton: Triton, ui: Executor):
    prompt = {"server": node(ui, "Server", url=triton.grpc_url), "ask": node(ui, "ModelLimits", server=["server", 0])}
    prompt["shown"] = node(ui, "PreviewAny", source=["ask", 0])
    told = json.loads(ui.run(prompt).ui["shown"]["text"][0])
    assert {"emoji", "faulty"} <= set(told["models"]), "other tests load more"
    assert told["limits"]["max_size"] == 128
    assert [task["pipeline"] for task in told["tasks"]] == [
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
    ]


@pytest.mark.parametrize("name", ["text_to_image", "edit_and_inpaint"])
def test_the_example_workflows_save_pictures_that_tell_how_they_were_made(
    triton: Triton, ui: Executor, apple: np.ndarray, name: str
):
    picture = Image.fromarray(apple).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 32, 64))
    picture.save(ui.host.input / "example.png")
    text = (EXAMPLES / f"api/{name}.json").read_text(encoding="utf-8")
    run = ui.run(json.loads(text.replace("localhost:8001", triton.grpc_url)), read(EXAMPLES / f"{name}.json"))
    assert run.ended == "execution_success", run.error
    saved = [each for shown in run.ui.values() for each in shown.get("images", [])]
    assert len(saved) == {"text_to_image": 4, "edit_and_inpaint": 2}[name]
    for each in saved:
        with Image.open(Path(ui.host.output, each["subfolder"], each["filename"])) as image:
            record = json.loads(image.text["triton-taylorseer"])
            assert image.size == (64, 64)
            assert json.loads(image.text["workflow"]) == read(EXAMPLES / f"{name}.json")
        assert record["model"] == "emoji"
        assert record["report"]["seed"] == record["fields"]["seed"]
        assert record["report"]["total_s"] > 0
