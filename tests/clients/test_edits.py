"""Edits through the front to a pretended Triton, by OpenAI's client for Python."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent, ImagesResponse
from openai.types.image_edit_params import ImageEditParamsBase, ImageEditParamsNonStreaming
from PIL import Image

from clients.openai_api.edit_fields import EditRequest
from clients.openai_api.fields import ImageRequest
from tests.support.edits import ONE, THREE, TWO, Calls, data_url, file_of, mask_of, pixels, send_form
from tests.support.fake_triton import DESCRIPTION, Failure, fake_triton
from tests.support.front import running_front


@pytest.fixture(scope="module")
def calls() -> Calls:
    return Calls()


@pytest.fixture(scope="module")
def url(calls: Calls) -> Iterator[str]:
    with fake_triton(calls) as triton, running_front(triton, aliases={"gpt-image-2": "emoji"}) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


# OpenAI's client


def test_every_parameter_of_the_pinned_client_is_a_field():
    assert set(ImageEditParamsBase.__annotations__) <= set(EditRequest.model_fields)
    assert set(ImageEditParamsNonStreaming.__annotations__) <= set(EditRequest.model_fields)


def test_a_picture_reaches_the_model_as_it_is(client, calls):
    answer = client.images.edit(image=ONE, prompt="star")
    assert calls.last == {"prompt": "star", "input_image": [ONE]}
    ImagesResponse.model_validate(answer.to_dict(), strict=True)
    assert answer.size == "6x4"
    assert answer.data[0].report["received"]["prompt"] == "star"


def test_several_pictures_keep_their_order(client, calls):
    client.images.edit(image=[ONE, ("b.webp", TWO, "image/webp"), io.BytesIO(THREE)], prompt="star")
    assert calls.last["input_image"] == [ONE, TWO, THREE]


def test_every_other_field_arrives_as_in_json(client, calls):
    own = {"seed": 7, "strength": 0.5, "cache_interval": 4, "num_inference_steps": 20, "cache_schedule": "0 4 9"}
    client.images.edit(image=ONE, prompt="null", size="64x96", model="gpt-image-2", extra_body=own)
    assert calls.last == {"prompt": "null", "input_image": [ONE], "width": 64, "height": 96, **own}


def test_fields_without_a_meaning_here_are_accepted(client, calls):
    client.images.edit(
        image=ONE,
        prompt="star",
        background="transparent",
        input_fidelity="high",
        quality="high",
        safety_identifier="someone",
        svg={"model": "none", "reasoning": {"effort": "low"}},
        user="someone",
        extra_body={"moderation": "low", "style": ["vivid", "flat"]},
    )
    assert calls.last == {"prompt": "star", "input_image": [ONE]}


def test_a_transparent_mask_becomes_white_where_it_is_edited(client, calls):
    client.images.edit(image=ONE, mask=mask_of(), prompt="star")
    (mask,) = calls.last["mask_image"]
    assert np.array_equal(pixels(mask), np.repeat([[255] * 3 + [0] * 3], 4, axis=0))
    assert Image.open(io.BytesIO(mask)).mode == "L"


def test_a_mask_without_alpha_is_the_models_own(client, calls):
    client.images.edit(image=ONE, mask=file_of(255, "L"), prompt="star")
    assert calls.last["mask_image"] == [file_of(255, "L")]


def test_several_results_have_seeds_in_a_row_and_the_same_picture(client, calls):
    before = len(calls.made)
    answer = client.images.edit(image=ONE, prompt="star", n=3, extra_body={"seed": 40})
    assert sorted(call.fields["seed"] for call in calls.made[before:]) == [40, 41, 42]
    assert all(call.fields["input_image"] == [ONE] for call in calls.made[before:])
    assert [each.report["received"]["seed"] for each in answer.data] == [40, 41, 42]


def test_a_url_and_another_format(client):
    answer = client.images.edit(image=ONE, prompt="star", response_format="url", output_format="webp")
    start, _, file = answer.data[0].url.partition(",")
    assert start == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(file))).format == "WEBP"


def test_a_stream_has_the_events_of_edits(client, calls):
    *partial, last = client.images.edit(image=ONE, mask=mask_of(), prompt="star", stream=True, partial_images=2)
    assert [each.partial_image_index for each in partial] == [0, 1]
    for each in partial:
        ImageEditPartialImageEvent.model_validate(each.to_dict(), strict=True)
    ImageEditCompletedEvent.model_validate(last.to_dict(), strict=True)
    assert calls.last["preview"] is True


def test_progress_of_an_edit_has_its_name(client):
    events = [*client.images.edit(image=ONE, prompt="star", stream=True, extra_body={"progress": True})]
    assert [each.type for each in events] == ["image_edit.progress"] * 4 + ["image_edit.completed"]
    assert [each.step for each in events[:4]] == [1, 2, 3, 4]


def test_generations_keep_their_events(client):
    events = [*client.images.generate(prompt="star", stream=True, partial_images=1)]
    assert [each.type for each in events] == ["image_generation.partial_image", "image_generation.completed"]


def test_the_asynchronous_client_does_the_same(url):
    async def edited() -> ImagesResponse:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await client.images.edit(image=[ONE, TWO], prompt="star", n=2)

    assert len(asyncio.run(edited()).data) == 2


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"prompt": "torn"}, "image", "input_image cannot be read"),
        ({"prompt": "other size", "mask": mask_of()}, "mask", "mask_image has 8 x 8 pixels"),
        ({"prompt": "small", "size": "1024x1024"}, "size", "height is 1024"),
        ({"prompt": "star", "size": "big"}, "size", 'size is "big", must be auto'),
        ({"prompt": "star", "mask": b"no picture"}, "mask", "mask is no picture, must be a PNG, JPEG or WebP file"),
        ({"prompt": "star", "markup": ONE}, "markup", "must be left out: no model here draws"),
        ({"prompt": "star", "n": 11}, "n", "n is 11, must be less than or equal to 10"),
        ({"prompt": "star", "n": 2, "stream": True}, "n", "n is 2, must be 1 with stream"),
        ({"prompt": "star", "image": [ONE] * 17}, "image", "must be 1 to 16 pictures"),
        ({"prompt": "star", "image": b""}, "image", "image is missing, must be 1 to 16 pictures"),
    ],
)
def test_what_is_wrong_names_its_field(client, fields, param, sentence):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": ONE, **fields})
    assert caught.value.param == param
    assert sentence in caught.value.body["message"]
    assert caught.value.type == "invalid_request_error"


def test_an_error_in_a_stream_names_its_field(client):
    with pytest.raises(openai.BadRequestError, match="input_image cannot be read") as caught:
        client.images.edit(image=ONE, prompt="torn", stream=True)
    assert caught.value.param == "image"


def test_a_full_queue_says_when_to_come_back(url):
    status, headers, _ = send_form(url, ("image", ONE), ("prompt", "full"))
    assert status == 503
    assert int(headers["retry-after-ms"]) > 0


# Generations


@pytest.mark.parametrize(("sent", "files"), [(data_url(ONE), [ONE]), ([data_url(ONE), data_url(TWO)], [ONE, TWO])])
def test_generations_take_the_models_inputs(client, calls, sent, files):
    own = {"input_image": sent, "mask_image": data_url(mask_of()), "strength": 0.25}
    client.images.generate(prompt="star", extra_body=own)
    assert calls.last == {"prompt": "star", "input_image": files, "mask_image": [mask_of()], "strength": 0.25}


@pytest.mark.parametrize("sent", ["no base64!", "https://example.com/a.png", 7, {"file_id": "file-1"}])
def test_and_refuse_what_is_no_picture(client, sent):
    with pytest.raises(openai.BadRequestError, match=r"input_image is .*, must ") as caught:
        client.images.generate(prompt="star", extra_body={"input_image": sent})
    assert caught.value.param == "input_image"


def test_what_the_model_says_of_a_picture_has_its_own_name_there(client):
    with pytest.raises(openai.BadRequestError, match="input_image cannot be read") as caught:
        client.images.generate(prompt="torn", extra_body={"input_image": data_url(ONE)})
    assert caught.value.param == "input_image"


def test_openais_names_of_edits_are_no_fields_of_generations():
    assert not {"image", "images", "mask", "markup"} & set(ImageRequest.model_fields)


# Models


def test_models_tell_their_tasks():
    task = {"pipeline": "FluxImg2ImgPipeline", "input_image": {"min": 1, "max": 1}, "mask_image": False}
    with (
        fake_triton(description={**DESCRIPTION, "tasks": [task], "presets": ["paper"]}) as triton,
        running_front(triton) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        (model,) = client.models.list()
        assert model.tasks == [task]
        assert model.presets == ["paper"]
        assert client.models.retrieve("emoji").tasks == [task]
        assert model.parameters == {"max_size": "128"}


def test_a_model_that_does_not_tell_is_listed_without_tasks():
    with (
        fake_triton(description=Failure("INVALID_ARG", "prompt is missing")) as triton,
        running_front(triton) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [(model.id, model.tasks, model.presets) for model in client.models.list()] == [("emoji", [], [])]


def test_nor_does_one_that_hangs_keep_the_list_waiting(client, monkeypatch):
    def hangs(*_: Any) -> Iterator[Any]:
        time.sleep(3)
        yield from ()

    monkeypatch.setattr("tests.support.fake_triton._Servicer._describe", hangs)
    monkeypatch.setattr("clients.openai_api.models._DESCRIBED_S", 0.1)
    began = time.monotonic()
    assert client.models.retrieve("emoji").tasks == []
    assert time.monotonic() - began < 2
