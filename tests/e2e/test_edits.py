"""Edits with the shipped model in a real Triton, through the front, by OpenAI's client."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from tests.support.front import running_front
from tests.support.serving import Triton

QUICK = {"seed": 7, "num_inference_steps": 10}


@pytest.fixture(scope="module")
def client(triton: Triton) -> Iterator[openai.OpenAI]:
    with (
        running_front(triton.grpc_url, default_model="emoji") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def decoded(b64_json: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))


def png_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The mean distance of two pictures, in shades of 255."""
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.fixture(scope="module")
def apple(client: openai.OpenAI) -> bytes:
    answer = client.images.generate(model="emoji", prompt="red apple, 3d", size="64x64", extra_body={"seed": 7})
    return base64.b64decode(answer.data[0].b64_json)


def test_an_edit_is_what_triton_makes_of_the_picture(triton, client, apple):
    answer = client.images.edit(image=apple, prompt="sunflower, noto", extra_body={**QUICK, "strength": 0.5})
    with triton.client() as direct:
        expected = direct.generate("sunflower, noto", input_image=[apple], strength=0.5, **QUICK)
    assert np.array_equal(decoded(answer.data[0].b64_json), expected.image[0])
    assert answer.data[0].report["num_steps"] == 5


def test_a_weak_edit_stays_near_its_picture(client, apple):
    """By the schedule itself: with less noise there is less to change."""
    made = [
        client.images.edit(image=apple, prompt="sunflower, noto", extra_body={"seed": 7, "strength": strength})
        for strength in (0.04, 0.9)
    ]
    weak, strong = (distance(decoded(each.data[0].b64_json), decoded(base64.b64encode(apple))) for each in made)
    assert weak < strong / 2


def test_the_size_follows_from_the_picture(client):
    wide = png_of(Image.new("RGB", (96, 48), "red"))
    assert client.images.edit(image=wide, prompt="star", extra_body=QUICK).size == "96x48"
    assert client.images.edit(image=wide, prompt="star", size="64x64", extra_body=QUICK).size == "64x64"


def test_transparent_parts_of_the_mask_are_painted_and_the_others_kept(client, apple):
    mask = Image.new("RGBA", (64, 64), "white")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    answer = client.images.edit(
        image=apple, mask=png_of(mask), prompt="sunflower, noto", extra_body={**QUICK, "strength": 1.0}
    )
    before, after = decoded(base64.b64encode(apple)), decoded(answer.data[0].b64_json)
    # Away from the border between them, which the autoencoder blurs.
    painted, kept = (distance(before[:, columns], after[:, columns]) for columns in (slice(0, 24), slice(40, 64)))
    assert painted > 3 * kept


def test_an_edit_streams_its_previews(client, apple):
    *partial, last = client.images.edit(
        image=apple, prompt="sunflower, noto", stream=True, partial_images=2, extra_body={"strength": 0.8}
    )
    assert [each.type for each in partial] == ["image_edit.partial_image"] * 2
    assert last.type == "image_edit.completed"
    assert decoded(last.b64_json).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"image": b"no picture"}, "image", "input_image "),
        ({"image": [png_of(Image.new("RGB", (64, 64)))] * 2}, "image", "input_image "),
        ({"mask": png_of(Image.new("L", (32, 32)))}, "mask", "mask_image "),
        ({"extra_body": {"strength": 1.5}}, "strength", "strength is 1.5, must be"),
    ],
)
def test_what_the_model_refuses_names_openais_field(client, apple, fields: dict[str, Any], param, sentence):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": apple, "prompt": "star", **fields})
    assert caught.value.param == param
    assert caught.value.body["message"].startswith(sentence)


def test_a_generation_takes_a_picture_too(client, apple):
    own = {**QUICK, "strength": 0.5, "input_image": base64.b64encode(apple).decode()}
    generated = client.images.generate(prompt="sunflower, noto", extra_body=own)
    edited = client.images.edit(image=apple, prompt="sunflower, noto", extra_body={**QUICK, "strength": 0.5})
    assert generated.data[0].b64_json == edited.data[0].b64_json


def test_the_model_tells_its_tasks(client):
    tasks = {task["pipeline"]: task for task in client.models.retrieve("emoji").tasks}
    assert {"FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"} <= set(tasks)
    assert tasks["FluxImg2ImgPipeline"]["input_image"] == {"min": 1, "max": 1}
    assert tasks["FluxInpaintPipeline"]["mask_image"]
