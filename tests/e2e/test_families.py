"""Every family through a real Triton with its tiny pipeline, saved and loaded as a real one is."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import imageio.v3 as imageio
import numpy as np
import openai
import pytest
import torch

from plugin.ops.server import Server, ServerConfig, free_ports
from taylorseer import full_steps
from tests.support.front import running_front
from tests.support.metrics import of_plugin
from tests.support.repository import write_pair
from tests.support.tiny import FAMILIES
from tests.support.tiny.declared import DECLARED
from tests.support.tiny.flux2 import KLEIN
from tests.support.waiting import wait_for
from triton_taylorseer_client import Client, Generation, InvalidArgument, Progress
from triton_taylorseer_client.messages import encoded_image


@dataclass(frozen=True)
class Served:
    """How a tiny pipeline is served and asked.

    Attributes:
        parameters: of its config.pbtxt.
        request: fields that ask for a picture or video.
        shape: of the result.
        calls: engine calls at a full step.
    """

    parameters: dict[str, str]
    request: dict[str, Any]
    shape: tuple[int, int, int, int]
    calls: int = 1


SERVED = {
    "dit": Served(
        {"takes_prompt": "false", "guidance_scale": "4.0", "min_size": "8", "size_multiple": "8"},
        {"class_label": 207},
        (1, 16, 16, 3),
    ),
    "hunyuan_video": Served(
        {"max_frames": "17", "guidance_scale": "6.0"},
        {"prompt": "a red apple", "height": 32, "width": 48, "num_frames": 5},
        (5, 32, 48, 3),
    ),
    "wan": Served(
        {"max_frames": "17", "guidance_scale": "5.0"},
        {"prompt": "a red apple", "height": 32, "width": 48, "num_frames": 5},
        (5, 32, 48, 3),
        calls=2,
    ),
    "hidream": Served(
        {"guidance_scale": "5.0", "max_sequence_length": "16"},
        {"prompt": "a red apple", "height": 32, "width": 32},
        (1, 128, 128, 3),  # the pipeline scales every request to its own area
    ),
    "krea2": Served({"guidance_scale": "4.5"}, {"prompt": "a red apple", "height": 32, "width": 48}, (1, 32, 48, 3), 2),
    "qwen_image": Served(
        {"guidance_scale": "4.0"}, {"prompt": "a red apple", "height": 32, "width": 48}, (1, 32, 48, 3), calls=2
    ),
    "flux2": Served(
        {"guidance_scale": "4.0", "max_sequence_length": "48"},
        {"prompt": "a red apple", "height": 32, "width": 48},
        (1, 32, 48, 3),
    ),
    "flux2_klein": Served(
        {"guidance_scale": "4.0", "max_sequence_length": "48"},
        {"prompt": "a red apple", "height": 32, "width": 48},
        (1, 32, 48, 3),
        calls=2,
    ),
    "hunyuan_video15": Served(  # as loaded, it has the published number of tokens: 1000, 256 and 729
        {"max_frames": "17", "guidance_scale": "6.0"},
        {"prompt": 'a red apple "tree"', "height": 32, "width": 48, "num_frames": 5},
        (5, 32, 48, 3),
        calls=2,
    ),
    "sd3": Served({"guidance_scale": "3.5"}, {"prompt": "a red apple", "height": 32, "width": 48}, (1, 32, 48, 3)),
    "z_image": Served({"guidance_scale": "3.0"}, {"prompt": "a red apple", "height": 32, "width": 48}, (1, 32, 48, 3)),
    "flux_quantized": Served(
        {
            "dtype": "bfloat16",
            "quantization": "transformer=int8, text_encoder=fp8, text_encoder_2=int8",
            **{"height": "32", "width": "48"},  # its autoencoder halves once: 1024 x 1024 would be 65,536 tokens
        },
        {"prompt": "a red apple", "height": 32, "width": 48},
        (1, 32, 48, 3),
    ),
    "ltx": Served(
        {"max_frames": "17", "frames_multiple": "8", "size_multiple": "32", "guidance_scale": "3.0"},
        {"prompt": "a red apple", "height": 64, "width": 32, "num_frames": 9},
        (9, 64, 32, 3),
    ),
}
TINY = {**FAMILIES, **DECLARED, "flux2_klein": KLEIN, "flux_quantized": FAMILIES["flux"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("families")
    for name, served in SERVED.items():
        pipeline = folder / f"{name}_pipeline"
        TINY[name].make(tmp_path_factory.mktemp(name), torch.float32).save_pretrained(pipeline)
        parameters = {"pipeline": str(pipeline), "engine": "torch", "torch_threads": "1", "num_inference_steps": "10"}
        write_pair(folder / "models", name, parameters | served.parameters)
    config = ServerConfig(folder / "models", "127.0.0.1", *free_ports(3))
    with Server(config, log=folder / "triton.log") as server:
        yield server


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest) -> Served:
    return SERVED[request.param]


@pytest.fixture
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(server.grpc_url, request.node.callspec.params["served"]) as client:
        yield client


def test_a_plain_call_gives_a_picture_or_video_of_the_right_full_steps(client, served):
    result = client.generate(**served.request, seed=1, cache_interval=3, cache_warmup_steps=2)
    assert result.image.shape == served.shape
    assert result.image.std() > 1, "random weights give noise, not one grey"
    assert result.report["full_steps"] == list(full_steps(10, 3, 2))
    assert result.report["engine_calls"] == served.calls * len(result.report["full_steps"])
    assert result.report["cache_bytes"] > 0
    assert [result.report[name] for name in ("num_frames", "height", "width")] == list(served.shape[:3])
    again = client.generate(**served.request, seed=1, cache_interval=3, cache_warmup_steps=2)
    assert np.array_equal(result.image, again.image)


def test_a_stream_tells_progress_with_previews_then_the_result(client, served):
    *updates, result = client.stream(**served.request, seed=1, preview=True, cache_interval=3)
    assert isinstance(result, Generation)
    assert result.image.shape == served.shape
    assert all(isinstance(update, Progress) for update in updates)
    assert {update.num_steps for update in updates} == {10}
    previews = [update.preview for update in updates if update.preview is not None]
    assert previews
    assert {preview.shape for preview in previews} == {served.shape[1:]}


def test_a_cancelled_request_ends_and_the_next_is_served(client, served):
    stream = client.stream(**served.request, num_inference_steps=900, cache_interval=1)
    assert next(stream).num_steps == 900
    stream.close()
    assert client.generate(**served.request, num_inference_steps=2).image.shape == served.shape


def test_a_video_travels_as_mp4_in_base64(server):
    body = {**SERVED["wan"].request, "num_inference_steps": 2, "response_format": "b64_json"}
    url = f"http://{server.http_url}/v2/models/wan/generate"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as answer:
        video = base64.b64decode(json.loads(answer.read())["b64_json"])
    assert imageio.imread(video, plugin="pyav").shape == SERVED["wan"].shape
    assert imageio.immeta(video, plugin="pyav")["fps"] == 16


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_a_video_is_made_through_openais_client(server):
    """The file is the one that the Python client's frames make."""
    fields = {**SERVED["wan"].request, "seed": 1, "num_inference_steps": 4}
    prompt = fields.pop("prompt")
    with (
        running_front(server.grpc_url) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        video = client.videos.create_and_poll(prompt=prompt, model="wan", poll_interval_ms=50, extra_body=fields)
        file = client.videos.download_content(video.id).content
        running = client.videos.create(prompt=prompt, model="wan", extra_body={**fields, "num_inference_steps": 900})
        assert client.videos.delete(running.id).deleted
    assert (video.status, video.report["num_steps"]) == ("completed", 4)
    with Client(server.grpc_url, "wan") as direct:
        expected = direct.generate(prompt, **fields)
    assert file == encoded_image(expected.image, fps=16)
    cancelled = "taylorseer_requests_total cancelled"
    wait_for(lambda: of_plugin(server.metrics_url, "wan").get(cancelled, 0) >= 1, "the deleted one is cancelled")


def test_models_of_classes_and_of_videos_name_their_own_fields_and_ranges(server):
    cases = [
        ("dit", {"prompt": "a dog"}, "prompt is given, must be left out: this model takes a class_label"),
        ("dit", {}, "class_label is missing, must be from 0 to 999"),
        ("dit", {"class_label": 1000}, "class_label is 1000, must be from 0 to 999"),
        ("wan", {"prompt": "a dog", "num_frames": 6}, r"num_frames is 6, must be 1 \+ a multiple of 4 from 1 to 17"),
        ("wan", {"prompt": "a dog", "class_label": 1}, "class_label is 1 beside a prompt, must be left out"),
    ]
    for model, fields, message in cases:
        with Client(server.grpc_url, model) as client, pytest.raises(InvalidArgument, match=message):
            client.generate(**{"seed": 1, **fields})
