"""Pictures through a real Triton: over each of its ways, as hostile files, late and cancelled."""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline
from PIL import Image
from tritonclient.utils import InferenceServerException, serialize_byte_tensor
from tritonclient.utils import shared_memory as shm

from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline
from plugin.request import parse_request
from plugin.serving.plan import architecture_of, plan_request
from tests.support.paths import REPOSITORY
from tests.support.serving import Triton
from triton_taylorseer_client import Client, DeadlineExceeded, Generation, InvalidArgument

EMOJI = ModelConfig.from_folder(REPOSITORY / "emoji_stream")
FIELDS: dict[str, Any] = {"prompt": "lemon, 3d", "seed": 5, "num_inference_steps": 10, "cache_interval": 1}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def client(triton: Triton) -> Iterator[Client]:
    with triton.client("emoji") as client:
        yield client


@pytest.fixture(scope="module")
def apple(client: Client) -> np.ndarray:
    """(64, 64, 3) uint8: what the model makes of a prompt."""
    return client.generate("red apple, 3d", seed=7, num_inference_steps=20).image[0]


@pytest.fixture(scope="module")
def edited(client: Client, apple: np.ndarray) -> np.ndarray:
    """What the Python client gets for `FIELDS` and the apple."""
    return client.generate(**FIELDS, input_image=png(apple), strength=0.6).image


@pytest.fixture(scope="module")
def plain() -> Any:
    """The embedded pipeline in plain diffusers."""
    return load_pipeline(EMOJI.source)


def plain_call(pipe: Any, pipeline_class: Any, size: tuple[int, int], strength: float, **pictures: Any) -> np.ndarray:
    made = pipeline_class(**pipe.components)
    made.set_progress_bar_config(disable=True)
    width, height = size
    pixels = made(
        "lemon, 3d",
        **pictures,
        strength=strength,
        width=width,
        height=height,
        num_inference_steps=10,
        guidance_scale=EMOJI.defaults.guidance_scale,
        max_sequence_length=EMOJI.max_sequence_length,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    return (pixels * 255).round().astype(int)


@pytest.mark.parametrize(("size", "strength"), [((64, 64), 0.3), ((96, 64), 0.6), ((40, 128), 1.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_cache_off_is_plain_diffusers_within_the_engines_rounding(client, plain, apple, size, strength, masked):
    """The model's engine is ONNX Runtime: float32 sums in another order move a pixel by a level of 255, seldom two."""
    picture = Image.fromarray(apple).resize(size)
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    fields = {**FIELDS, "input_image": picture, "strength": strength, **({"mask_image": mask} if masked else {})}
    result = client.generate(**fields)
    assert result.image.shape == (1, size[1], size[0], 3), "the size follows the picture"
    pipeline_class, pictures = FluxImg2ImgPipeline, {"image": picture}
    if masked:
        pipeline_class, pictures = FluxInpaintPipeline, {"image": picture, "mask_image": mask}
    difference = np.abs(result.image[0].astype(int) - plain_call(plain, pipeline_class, size, strength, **pictures))
    assert difference.max() <= 2
    assert result.report["num_steps"] == {0.3: 3, 0.6: 6, 1.0: 10}[strength]


def test_generate_takes_base64_alone_in_a_data_url_and_in_a_list(triton, apple, edited):
    text = base64.b64encode(png(apple)).decode()
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))  # as `base64` writes it
    for given in (text, [text], wrapped, f"data:image/png;base64,{text}"):
        body = {**FIELDS, "input_image": given, "strength": 0.6, "response_format": "b64_json"}
        answer = generate(triton, body)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["b64_json"]))))
        assert np.array_equal(pixels, edited[0])


def generate(triton: Triton, body: dict[str, Any]) -> dict[str, Any]:
    url = f"http://{triton.http_url}/v2/models/emoji/generate"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize("binary", [True, False])
def test_plain_http_takes_files_as_binary_data_and_base64_in_json(triton, apple, edited, binary):
    file = png(apple)
    given = file if binary else base64.b64encode(file)
    with tritonclient.http.InferenceServerClient(triton.http_url) as client:
        inputs = inputs_of(tritonclient.http, binary_data=binary)
        inputs.append(picture_input(tritonclient.http, given, binary_data=binary))
        result = client.infer("emoji", inputs)
    assert np.array_equal(result.as_numpy("image"), edited)


def inputs_of(module: Any, **options: Any) -> list[Any]:
    kinds = {str: ("BYTES", np.object_), int: ("INT32", np.int32), float: ("FP32", np.float32)}
    inputs = []
    for name, value in {**FIELDS, "strength": 0.6}.items():
        kind, dtype = ("INT64", np.int64) if name == "seed" else kinds[type(value)]
        array = np.array([value.encode() if isinstance(value, str) else value], dtype)
        each = module.InferInput(name, [1], kind)
        each.set_data_from_numpy(array, **options)
        inputs.append(each)
    return inputs


def picture_input(module: Any, file: bytes, **options: Any) -> Any:
    each = module.InferInput("input_image", [1], "BYTES")
    each.set_data_from_numpy(np.array([file], np.object_), **options)
    return each


def test_plain_grpc_takes_files_from_system_shared_memory(triton, apple, edited):
    data = serialize_byte_tensor(np.array([png(apple)], np.object_)).item()
    handle = shm.create_shared_memory_region("pictures", "/triton_taylorseer_test", len(data))
    try:
        shm.set_shared_memory_region(handle, [np.frombuffer(data, np.uint8)])
        triton.grpc.register_system_shared_memory("pictures", "/triton_taylorseer_test", len(data), headers=triton.key)
        each = tritonclient.grpc.InferInput("input_image", [1], "BYTES")
        each.set_shared_memory("pictures", len(data))
        result = triton.grpc.infer("emoji", [*inputs_of(tritonclient.grpc), each])
        assert np.array_equal(result.as_numpy("image"), edited)
    finally:
        triton.grpc.unregister_system_shared_memory("pictures", headers=triton.key)
        shm.destroy_shared_memory_region(handle)


def test_a_stream_reports_the_steps_that_run_with_previews(client, apple, edited):
    *updates, result = client.stream(**FIELDS, input_image=png(apple), strength=0.6, preview=True)
    assert isinstance(result, Generation)
    assert np.array_equal(result.image, edited)
    assert {update.num_steps for update in updates} == {6}
    (preview,) = [update.preview for update in updates if update.preview is not None]
    assert preview.shape == (64, 64, 3)
    assert np.abs(preview.astype(int) - result.image[0]).mean() < 40, "the preview is of this picture"


def test_the_plan_is_what_happens(client, apple):
    values = {"prompt": b"lemon, 3d", "input_image": [png(apple)], "strength": 0.4}
    architecture = architecture_of(EMOJI.source.pipeline)
    request = parse_request(values, EMOJI.defaults, EMOJI.limits, 0, EMOJI.presets, architecture.tasks)
    planned = plan_request(EMOJI, architecture, request)
    report = client.generate("lemon, 3d", input_image=png(apple), strength=0.4).report
    assert (report["num_steps"], tuple(report["full_steps"])) == (planned.num_steps, planned.full_steps) != (50, ())
    assert report["cache_bytes"] == planned.cache_bytes
    assert report["engine_calls"] == len(planned.full_steps)


def test_what_a_model_takes_is_in_its_description(client):
    description = client.description()
    assert description["pipeline"] == "FluxPipeline"
    assert [(task["pipeline"], task["input_image"], task["mask_image"]) for task in description["tasks"]] == [
        ("FluxPipeline", {"min": 0, "max": 0}, False),
        ("FluxImg2ImgPipeline", {"min": 1, "max": 1}, False),
        ("FluxInpaintPipeline", {"min": 1, "max": 1}, True),
    ]
    saved = json.loads((REPOSITORY / "emoji/1/pipeline/cache_presets.json").read_text())
    assert {*description["presets"]} == {"default", "paper", *saved}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strength": 0.5}, "strength is 0.5, must be left out: there is no input_image"),
        ({"mask_image": b"apple"}, "input_image is missing, must have 1 files: a mask_image is given"),
        ({"input_image": [b"apple", b"apple"]}, "input_image has 2 files, must have 0 or 1 of them"),
        ({"input_image": b"apple", "strength": 0.0}, "strength is 0, must leave at least 1 of 10 num_inference_steps"),
        ({"input_image": b"apple", "strength": 1.5}, r"strength is 1\.5, must be a finite number from 0\.0 to 1\.0"),
        ({"input_image": b"apple", "mask_image": b"small"}, "mask_image is 32 x 32, must be 64 x 64 as input_image is"),
        ({"input_image": b"no picture"}, "input_image is neither a PNG, JPEG or WebP file nor one in base64"),
        ({"input_image": b"apple cut"}, "input_image cannot be read, must be a whole picture: "),
        ({"input_image": b"bomb"}, "input_image must have at most 50000000 pixels in all: "),
        ({"input_image": b"animation"}, "input_image is an animation of 3 frames, must be a still picture"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_with_field_value_and_range(client, apple, fields, message):
    files = hostile(apple)

    def file(name: Any) -> Any:
        return [file(each) for each in name] if isinstance(name, list) else files.get(name, name)

    given = {name: value if name == "strength" else file(value) for name, value in fields.items()}
    with pytest.raises(InvalidArgument, match=message):
        client.generate(**{**FIELDS, **given})


def hostile(apple: np.ndarray) -> dict[bytes, bytes]:
    """Files by the names that the cases above give them."""
    whole = png(apple)
    frames = [Image.fromarray(np.roll(apple, 9 * i, axis=0)) for i in range(3)]
    animation = io.BytesIO()
    frames[0].save(animation, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    bomb = bytearray(whole)
    bomb[16:24] = (50_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    return {
        b"apple": whole,
        b"small": png(apple[::2, ::2]),
        b"apple cut": whole[: len(whole) // 2],
        b"bomb": bytes(bomb),
        b"animation": animation.getvalue(),
    }


def test_a_file_of_a_hundred_megabytes_is_refused_and_takes_no_memory_of_the_model(triton, client, apple):
    worker = triton.process_of("emoji_stream")
    before = worker.memory_info().rss
    huge = png(apple) + bytes(100 << 20)
    with pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED|larger than"):
        triton.grpc.infer("emoji", [*inputs_of(tritonclient.grpc), picture_input(tritonclient.grpc, huge)])
    with pytest.raises(urllib.error.HTTPError) as refusal:
        generate(triton, {**FIELDS, "input_image": base64.b64encode(huge).decode()})
    assert refusal.value.code == 413
    assert worker.memory_info().rss - before < 50 << 20
    assert client.generate(**FIELDS).image.shape == (1, 64, 64, 3)


def test_forty_megapixels_are_scaled_to_the_models_largest_size(triton):
    """In a file of a few kilobytes; the memory for its pixels is set aside before it is decoded, and given back."""
    file = io.BytesIO()
    Image.new("L", (8000, 5000), 128).save(file, "PNG")
    with Client(triton.grpc_url, "faulty") as client:
        result = client.generate(**FIELDS, input_image=file.getvalue(), strength=0.3)
    assert result.image.shape == (1, 80, 128, 3)
    assert triton.wait_until_idle("faulty")["taylorseer_cache_bytes"] == 0


def test_deadlines_and_cancels_end_requests_with_pictures_too(triton, client, apple):
    file = png(apple)
    with pytest.raises(DeadlineExceeded):
        client.generate("lemon, 3d", input_image=file, num_inference_steps=1000, cache_interval=1, deadline_ms=60)
    stream = client.stream("lemon, 3d", input_image=file, num_inference_steps=1000, cache_interval=1, strength=0.5)
    assert next(stream).num_steps == 500
    began = time.monotonic()
    stream.close()
    metrics = triton.wait_until_idle("emoji")
    assert metrics["taylorseer_cache_bytes"] == 0
    assert time.monotonic() - began < 10
