"""A1111's API through the front to a pretended Triton: requests as Open WebUI, LibreChat and webuiapi send them.

`test_other_clients_python.py` has webuiapi itself.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from clients.openai_api import MAX_BODY_BYTES, create_app
from clients.openai_api.sdapi_fields import Txt2ImgRequest
from plugin.ops.server import Server
from tests.support.edits import ONE, TWO, Calls, ask, data_url, file_of, pixels
from tests.support.fake_triton import PICTURE, Call, Picture, Step, fake_triton
from tests.support.front import running_front


@pytest.fixture(scope="module")
def calls() -> Calls:
    return Calls()


@pytest.fixture(scope="module")
def url(calls: Calls) -> Iterator[str]:
    with fake_triton(calls, models=("emoji", "swan")) as triton, running_front(triton, default_model="emoji") as url:
        yield url


def send(url: str, path: str = "txt2img", **fields: Any) -> tuple[int, Any]:
    """Status and JSON of a request for pictures."""
    status, _, answer = ask(url, json.dumps(fields), "application/json", f"/sdapi/v1/{path}")
    return status, answer


def get(url: str, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("GET", f"/sdapi/v1/{path}", headers=headers)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


# What is asked for


def test_its_names_are_the_models(url, calls):
    status, _ = send(
        url,
        prompt="star",
        **{"negative_prompt": "blurry", "steps": 22, "cfg_scale": 4.5, "width": 64, "height": 96, "seed": 7},
        **{"sampler_name": "Euler a", "scheduler": "automatic", "override_settings": {"sd_model_checkpoint": "swan"}},
    )
    assert status == 200
    asked = {"prompt": "star", "negative_prompt": "blurry", "num_inference_steps": 22, "guidance_scale": 4.5}
    assert calls.last == {**asked, "width": 64, "height": 96, "seed": 7, "num_frames": 1}
    assert calls.made[-1].model == "swan_stream"


def test_a_seed_of_minus_one_is_random(url, calls):
    send(url, prompt="star", seed=-1)
    assert calls.last == {"prompt": "star", "num_frames": 1}


def test_a_batch_times_its_rounds_are_so_many_pictures(url, calls):
    before = len(calls.made)
    _, answer = send(url, prompt="star", batch_size=3, n_iter=2, seed=40)
    assert sorted(call.fields["seed"] for call in calls.made[before:]) == [40, 41, 42, 43, 44, 45]
    assert len(answer["images"]) == 6


def test_inputs_of_the_models_may_be_sent_too(url, calls):
    send(url, prompt="star", cache_preset="paper", num_inference_steps=9)
    assert calls.last == {"prompt": "star", "cache_preset": "paper", "num_inference_steps": 9, "num_frames": 1}


def test_without_pictures_a_strength_means_nothing(url, calls):
    send(url, prompt="star", denoising_strength=0.7)
    assert calls.last == {"prompt": "star", "num_frames": 1}


def test_pictures_begin_an_edit_and_white_of_a_mask_is_repainted(url, calls):
    mask = file_of(255, "L")
    status, _ = send(
        url, "img2img", prompt="star", init_images=[data_url(ONE)], mask=data_url(mask), denoising_strength=0.6
    )
    assert status == 200
    asked = {"prompt": "star", "input_image": [ONE], "strength": pytest.approx(0.6), "num_frames": 1}
    assert calls.last == {**asked, "mask_image": [mask]}
    send(url, "img2img", init_images=[base64.b64encode(each).decode() for each in (ONE, TWO)])
    assert calls.last["input_image"] == [ONE, TWO], "bare base64 too"


@pytest.mark.parametrize(
    ("path", "fields", "sentence", "param"),
    [
        ("txt2img", {"batch_size": 4, "n_iter": 3}, "batch_size x n_iter is 12, must be at most 10", "batch_size"),
        ("txt2img", {"batch_size": 0}, "batch_size is 0, must be greater than or equal to 1", "batch_size"),
        ("txt2img", {"steps": "many"}, 'steps is "many", must be a valid integer', "steps"),
        ("txt2img", {"enable_hr": True}, "enable_hr is true, must be left out: no model here does that", "enable_hr"),
        ("txt2img", {"alwayson_scripts": {"ControlNet": {}}}, "must be left out: no model here", "alwayson_scripts"),
        ("txt2img", {"styles": ["oil"]}, "must be left out: no model here", "styles"),
        ("txt2img", {"wings": 2}, "wings is not a field, must be one of: ", "wings"),
        ("txt2img", {"num_frames": 9}, "num_frames is 9, must be 1: the answer is a picture", "num_frames"),
        ("txt2img", {"init_images": [data_url(ONE)]}, "POST /sdapi/v1/img2img takes it", "init_images"),
        ("img2img", {}, "init_images is missing, must be one picture or more", "init_images"),
        ("img2img", {"init_images": ["star.png"]}, "must be a PNG, JPEG or WebP file", "init_images"),
        ("txt2img", {"prompt": "small", "height": 1024}, "height is 1024, must be a multiple of 8", "height"),
    ],
)
def test_what_is_wrong_is_said(url, path, fields, sentence, param):
    status, answer = send(url, path, **{"prompt": "star", **fields})
    assert status == 400
    assert sentence in answer["error"]["message"]
    assert answer["error"]["param"] == param


def test_a_model_that_is_not_there_is_named(url):
    status, answer = send(url, prompt="star", override_settings={"sd_model_checkpoint": "unicorn"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_only_bodies_with_pictures_may_be_large(url):
    padding = "x" * (MAX_BODY_BYTES + 1)
    assert send(url, prompt="star", sampler_name=padding)[0] == 413
    assert send(url, "img2img", init_images=[data_url(ONE)], sampler_name=padding)[0] == 200


def test_openapi_tells_what_is_taken(url):
    """Each body that the schema takes is served, each that it does not take is refused."""
    told = create_app().openapi()["paths"]["/sdapi/v1/txt2img"]["post"]["requestBody"]["content"]
    schema = told["application/json"]["schema"]
    assert schema["properties"].keys() == Txt2ImgRequest.model_fields.keys()
    for fields in ({}, {"steps": 4}, {"steps": "a"}, {"cfg_scale": "b"}, {"batch_size": 0}, {"eta": 1}, {"wings": 2}):
        status, _ = send(url, **fields)
        assert status == (200 if Draft202012Validator(schema).is_valid(fields) else 400), fields


# What is answered


def test_the_answer_has_pictures_their_settings_and_what_was_asked(url):
    status, answer = send(url, prompt="star", negative_prompt="blurry", steps=4, cfg_scale=3.5, width=64, eta=1.0)
    assert status == 200
    (file,) = answer["images"]
    assert np.array_equal(pixels(base64.b64decode(file)), PICTURE[0])
    assert answer["parameters"]["prompt"] == "star"
    info = json.loads(answer["info"])
    assert (info["width"], info["height"], info["seed"], info["all_seeds"]) == (6, 4, 3, [3])
    (text,) = info["infotexts"]
    assert text == "star\nNegative prompt: blurry\nSteps: 4, CFG scale: 3.5, Seed: 3, Size: 6x4, Model: emoji"


def test_what_was_asked_comes_back_without_pictures(url):
    _, answer = send(url, "img2img", prompt="star", init_images=[data_url(ONE)], mask=data_url(TWO))
    assert not {"init_images", "mask", "mask_image", "images"} & answer["parameters"].keys()


def test_what_is_no_json_number_is_no_failure(url):
    status, _, answer = ask(url, '{"prompt": "star", "eta": NaN}', "application/json", "/sdapi/v1/txt2img")
    assert (status, answer["parameters"]["eta"]) == (200, None)


# What clients ask for before


def test_models_samplers_and_options(url):
    assert [each["title"] for each in get(url, "sd-models")[2]] == ["emoji", "swan"]
    assert [each["name"] for each in get(url, "samplers")[2]] == ["the model's own"]
    assert get(url, "options")[2] == {"sd_model_checkpoint": "emoji"}


def test_options_are_not_set_for_all(url):
    assert send(url, "options", sd_model_checkpoint="emoji") == (200, None)
    status, answer = send(url, "options", sd_model_checkpoint="swan")
    assert status == 400
    assert "each request may name its model in override_settings" in answer["error"]["message"]


def test_progress_is_that_of_all_pictures_that_are_being_made():
    begun, ends = threading.Semaphore(0), threading.Event()

    def half(call: Call) -> Iterator[Step | Picture]:
        yield Step(1 if call.fields["seed"] == 1 else 3, 4)
        begun.release()
        ends.wait(20)
        yield Picture({"seed": 3})

    with fake_triton(half) as triton, running_front(triton) as url:
        assert get(url, "progress")[2]["progress"] == 0.0
        thread = threading.Thread(target=send, args=(url,), kwargs={"prompt": "star", "seed": 1, "batch_size": 2})
        thread.start()
        for _ in range(2):
            assert begun.acquire(timeout=20)
        told = _when(lambda: get(url, "progress")[2], lambda each: each["progress"] == 0.5)
        assert told["state"]["job_count"] == 2
        ends.set()
        thread.join(20)
        assert get(url, "progress")[2]["state"]["job_count"] == 0


def _when(read: Any, holds: Any) -> Any:
    """What is read as soon as it holds: the steps come over another connection."""
    for _ in range(200):
        if holds(value := read()):
            return value
        threading.Event().wait(0.02)
    raise AssertionError(value)


def test_other_parts_of_its_api_are_named_as_not_served(url):
    status, _, answer = get(url, "loras")
    assert status == 404
    message = answer["error"]["message"]
    assert message.startswith("GET /sdapi/v1/loras is not served: of A1111's API served are POST /sdapi/v1/txt2img")


# The key


def test_the_key_is_a_password_or_a_token():
    with fake_triton() as triton, running_front(triton, api_key="secret") as url:
        right = base64.b64encode(b"anyone:secret").decode()
        wrong = (base64.b64encode(each).decode() for each in (b"secret", b"secret:", b"a:wrong", b"a:\xff"))
        for sent in ("", *(f"Basic {each}" for each in wrong), "Basic ???", "Bearer wrong", "Digest secret"):
            status, headers, answer = get(url, "sd-models", authorization=sent)
            assert (status, headers["www-authenticate"]) == (401, "Basic"), sent
            assert answer["error"]["code"] == "invalid_api_key"
        for sent in (f"Basic {right}", f"basic {right}", "Bearer secret"):
            assert get(url, "sd-models", authorization=sent)[0] == 200


def test_a_real_triton_answers(echo: Server):
    with running_front(echo.grpc_url, default_model="echo") as url:
        status, answer = send(url, prompt="star", steps=4, seed=7, batch_size=2)
        _, edited = send(url, "img2img", prompt="star", init_images=[data_url(ONE)], denoising_strength=0.5)
    assert status == 200
    assert [pixels(base64.b64decode(each)).shape for each in answer["images"]] == [(4, 6, 3)] * 2
    (report,) = json.loads(edited["info"])["reports"]
    assert report["received"]["input_image"][2] == [ONE.hex()]
    assert report["received"]["strength"][2] == 0.5
