"""Pictures into every family that takes them, through a real Triton: bit for bit what plain diffusers makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from plugin.ops.server import Server, ServerConfig, free_ports
from taylorseer import full_steps
from tests.support.commands import run
from tests.support.repository import write_pair
from tests.support.tiny.pictures import CASES as WRITTEN_CASES
from tests.support.tiny.pictures import left_half, picture, plain
from tests.support.tiny.pictures_declared import DECLARED_CASES
from triton_taylorseer_client import Client, Generation, Progress

CASES = {**WRITTEN_CASES, **DECLARED_CASES}
SERVED = {
    "kontext": "flux kontext, three pictures",
    "fill": "flux fill",
    "wan": "wan video to video",
    "wan_i2v": "wan first and last frame",
    "hunyuan_i2v": "hunyuan video, first frame",
    "qwen_edit": "qwen image edit plus",  # which scales its picture to a megapixel, here as anywhere
}
STEPS, WIDTH, HEIGHT = 6, 64, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def pipelines(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pipelines that are served, as plain diffusers loads them: how weights lie in memory decides last bits."""
    loaded = {}
    for model, name in SERVED.items():
        saved = folder / f"{model}_pipeline"
        CASES[name].make(tmp_path_factory.mktemp(model)).save_pretrained(saved)
        loaded[model] = DiffusionPipeline.from_pretrained(saved)
        loaded[model].set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def server(folder: Path, pipelines: dict[str, Any]) -> Iterator[Server]:
    for model, name in SERVED.items():
        parameters = {"pipeline": str(folder / f"{model}_pipeline"), "engine": "torch", "torch_threads": "1"}
        write_pair(folder / "models", model, {**parameters, **CASES[name].parameters})
    config = ServerConfig(folder / "models", "127.0.0.1", *free_ports(3))
    with Server(config, log=folder / "triton.log") as server:
        yield server


def fields_of(model: str) -> dict[str, Any]:
    case = CASES[SERVED[model]]
    fields = {
        "prompt": "a red apple",
        "seed": 3,
        "num_inference_steps": STEPS,
        "input_image": [picture(WIDTH, HEIGHT, seed) for seed in range(case.pictures)],
        "mask_image": left_half(WIDTH, HEIGHT) if case.mask else None,
        "strength": case.strengths[1] if len(case.strengths) > 1 else None,
    }
    return fields | ({"num_frames": case.num_frames} if case.num_frames > 1 else {})


def plain_result(model: str, pipe: Any) -> np.ndarray:
    case, fields = CASES[SERVED[model]], fields_of(model)
    scale = float(case.parameters["guidance_scale"])
    guidance = {"true_cfg_scale": scale, "negative_prompt": " "} if model == "qwen_edit" else {"guidance_scale": scale}
    arguments = {
        **case.arguments(fields["input_image"]),
        **guidance,
        **({"mask_image": fields["mask_image"]} if case.mask else {}),
        **({"strength": fields["strength"]} if fields["strength"] is not None else {}),
        **({"num_frames": case.num_frames} if case.num_frames > 1 and model != "wan" else {}),
        **({"max_area": WIDTH * HEIGHT} if model == "kontext" else {}),
    }
    pixels = plain(pipe, case.pipeline)(
        **arguments,
        prompt="a red apple",
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=STEPS,
        max_sequence_length=int(case.parameters["max_sequence_length"]),
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    )[0]
    return (np.asarray(pixels).reshape(-1, HEIGHT, WIDTH, 3) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("model", SERVED)
def test_the_cache_off_is_bit_for_bit_plain_diffusers_and_on_has_its_full_steps(server, pipelines, model):
    case = CASES[SERVED[model]]
    with Client(server.grpc_url, model) as client:
        off = client.generate(**fields_of(model), cache_interval=1)
        *updates, on = client.stream(**fields_of(model), cache_interval=3, cache_warmup_steps=2, preview=True)
    assert np.array_equal(off.image, plain_result(model, pipelines[model]))
    assert isinstance(on, Generation)
    steps = off.report["num_steps"]
    assert off.report["full_steps"] == list(range(steps))
    assert on.report["full_steps"] == list(full_steps(steps, 3, 2))
    assert on.report["engine_calls"] == case.calls * len(on.report["full_steps"])
    assert {update.preview.shape for update in updates if update.preview is not None} <= {(HEIGHT, WIDTH, 3)}


@pytest.mark.parametrize("model", SERVED)
def test_a_request_that_is_cancelled_at_its_first_preview_ends_and_the_next_is_served(server, model):
    with Client(server.grpc_url, model) as client:
        stream = client.stream(**{**fields_of(model), "num_inference_steps": 500}, cache_interval=1, preview=True)
        update = next(update for update in stream if isinstance(update, Generation) or update.preview is not None)
        assert isinstance(update, Progress)
        assert update.num_steps >= 250
        assert update.preview.shape == (HEIGHT, WIDTH, 3)
        stream.close()
        assert client.generate(**{**fields_of(model), "num_inference_steps": 3}).report["num_steps"] <= 3


def test_the_health_check_brings_what_a_model_begins_with(server):
    for model in ("fill", "wan_i2v", "kontext"):
        code, output = run("health", "--url", server.grpc_url, "--model", model)
        assert (code, output.strip()) == (0, "healthy")


def test_a_model_that_begins_with_a_picture_says_so(server):
    with Client(server.grpc_url, "fill") as client:
        (task,) = client.description()["tasks"]
        assert (task["input_image"], task["mask_image"], task["strength"]) == ({"min": 1, "max": 1}, True, 1.0)
        with pytest.raises(Exception, match="input_image is missing, must have 1 files: this model begins with a pict"):
            client.generate("a red apple")
        with pytest.raises(Exception, match="mask_image is missing, must be a PNG, JPEG or WebP file"):
            client.generate("a red apple", input_image=picture(32, 32))
        with pytest.raises(Exception, match="negative_prompt is given, must be left out: FluxFillPipeline takes none"):
            client.generate(**fields_of("fill"), negative_prompt="ugly")
