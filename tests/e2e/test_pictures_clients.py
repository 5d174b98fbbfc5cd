"""Pictures in requests through a real Triton: every client and every form of a picture ask for the same."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import run
from tests.support.serving import Triton
from triton_taylorseer_client import AsyncClient, Generation, InvalidArgument, Progress

FAST: dict[str, Any] = {"seed": 3, "num_inference_steps": 20, "cache_interval": 1}
PROMPT = "red apple, noto"


@pytest.fixture(scope="module")
def apple(triton: Triton) -> np.ndarray:
    """What the requests begin with: (64, 64, 3) uint8."""
    with triton.client() as client:
        return client.generate("red apple, 3d", seed=7, num_inference_steps=20).image[0]


@pytest.fixture
def file(apple: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "apple.png"
    Image.fromarray(apple).save(path)
    return path


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The mean difference of two pictures, in levels of 255."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_a_model_describes_what_it_makes_of_pictures(triton: Triton):
    with triton.client() as client:
        description = client.description()
    assert description["pipeline"] == "FluxPipeline"
    tasks = {task["pipeline"]: task for task in description["tasks"]}
    assert tasks["FluxImg2ImgPipeline"] == {
        "pipeline": "FluxImg2ImgPipeline",
        "input_image": {"min": 1, "max": 1},
        "mask_image": False,
        "strength": 0.6,
    }
    assert tasks["FluxInpaintPipeline"]["mask_image"] is True
    assert tasks["FluxPipeline"]["input_image"] == {"min": 0, "max": 0}


def test_asyncio_reads_the_same_description(triton: Triton):
    async def told() -> dict[str, Any]:
        async with AsyncClient(triton.grpc_url) as client:
            return await client.description()

    with triton.client() as client:
        assert asyncio.run(told()) == client.description()


def test_every_form_of_a_picture_asks_for_the_same(triton: Triton, apple: np.ndarray, file: Path):
    url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    forms = [file, str(file), file.read_bytes(), url, apple, Image.fromarray(apple), [file]]
    with triton.client() as client, ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda form: client.generate(PROMPT, input_image=form, **FAST).image, forms))
    assert made[0].shape == (1, 64, 64, 3)
    assert distance(made[0][0], apple) > 1, "a picture of its own"
    for other in made[1:]:
        assert np.array_equal(other, made[0])


def test_a_stream_counts_the_steps_that_strength_leaves(triton: Triton, file: Path):
    with triton.client() as client:
        *updates, result = client.stream(PROMPT, input_image=file, strength=0.5, preview=True, **FAST)
    assert isinstance(result, Generation)
    assert result.report["num_steps"] == 10
    assert {update.num_steps for update in updates if isinstance(update, Progress)} == {10}
    assert any(update.preview is not None for update in updates if isinstance(update, Progress))


def test_little_strength_keeps_more_of_the_picture(triton: Triton, apple: np.ndarray):
    with triton.client() as client:
        little, much = (
            client.generate("cactus, flat", input_image=apple, strength=strength, **FAST).image[0]
            for strength in (0.2, 0.95)
        )
    assert distance(little, apple) < distance(much, apple)


def test_what_is_black_in_a_mask_is_kept(triton: Triton, apple: np.ndarray):
    mask = np.zeros((64, 64), bool)
    mask[:, 32:] = True
    fields = {"input_image": apple, "strength": 0.9, **FAST}
    with triton.client() as client:
        made = client.generate("cactus, flat", mask_image=mask, **fields).image[0]
        same = client.generate("cactus, flat", mask_image=Image.fromarray(mask), **fields).image[0]
    assert np.array_equal(made, same), "a bool array is the mask that an image of one bit is"
    # Eight columns beside the edge left out: a latent stands for eight pixels, and the decoder sees its neighbours.
    kept, painted = distance(made[:, :24], apple[:, :24]), distance(made[:, 40:], apple[:, 40:])
    assert kept < painted / 2


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"input_image": b"no picture"}, "input_image "),
        ({"input_image": [np.zeros((64, 64, 3), np.uint8)] * 2}, "input_image has 2 files, must have "),
        ({"mask_image": np.ones((64, 64), bool)}, "input_image is missing, must have 1 files: "),
        ({"strength": 0.5}, "strength is 0.5, must be left out: there is no input_image"),
        ({"input_image": np.zeros((64, 64, 3), np.uint8), "strength": 1.5}, "strength is 1.5, must be "),
    ],
)
def test_what_the_server_refuses_names_the_field(triton: Triton, fields: dict[str, Any], sentence: str):
    with triton.client() as client, pytest.raises(InvalidArgument) as caught:
        client.generate(PROMPT, **fields)
    assert str(caught.value).startswith(sentence)


def test_the_command_line_makes_the_picture_of_the_library(triton: Triton, file: Path, tmp_path: Path):
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "mask.png")
    options = ["--url", triton.grpc_url, "--seed", 3, "--steps", 20, "--interval", 1, "--strength", 0.5, "--json"]
    output = ["-o", tmp_path / "edited.png"]
    code, printed = run("generate", PROMPT, "--image", file, "--mask", tmp_path / "mask.png", *options, *output)
    assert code == 0, printed
    with triton.client() as client:
        expected = client.generate(PROMPT, input_image=file, mask_image=tmp_path / "mask.png", strength=0.5, **FAST)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "edited.png")), expected.image[0])


def test_a_batch_has_pictures_on_its_lines(triton: Triton, file: Path, tmp_path: Path):
    lines = [{"prompt": "star, noto", "input_image": file.name}, {"prompt": "star, noto", "strength": 0.3}]
    (tmp_path / "prompts.txt").write_text("\n".join(map(json.dumps, lines)))
    options = ["--url", triton.grpc_url, "--seed", 3, "--steps", 20, "--interval", 1, "--image", file, "--json"]
    code, printed = run("generate", "--batch", tmp_path / "prompts.txt", *options, "-o", tmp_path / "made")
    assert code == 0, printed
    reports = {
        Path(each["output"]).name: each["report"]["num_steps"]
        for each in map(json.loads, filter(lambda line: line.startswith("{"), printed.splitlines()))
    }
    assert reports == {"0001-star-noto.png": 12, "0002-star-noto.png": 6}
    with triton.client() as client:
        expected = client.generate("star, noto", input_image=file, **FAST).image[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "made/0001-star-noto.png")), expected)


def test_base64_text_over_http_asks_for_the_same(triton: Triton, file: Path):
    body = {
        "prompt": PROMPT,
        "input_image": base64.b64encode(file.read_bytes()).decode(),
        "response_format": "b64_json",
    }
    request = urllib.request.Request(
        f"http://{triton.http_url}/v2/models/emoji/generate", json.dumps({**body, **FAST}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        picture = Image.open(io.BytesIO(base64.b64decode(json.loads(answer.read())["b64_json"])))
    with triton.client() as client:
        expected = client.generate(PROMPT, input_image=file, **FAST).image[0]
    assert np.array_equal(np.asarray(picture), expected)
