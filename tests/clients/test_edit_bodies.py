"""The bodies of edits: forms, JSON, how large they may be, and what is wrong with them."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from jsonschema import Draft202012Validator

from clients.openai_api import MAX_BODY_BYTES, MAX_EDIT_BYTES, create_app
from clients.openai_api.edit_fields import EditRequest
from clients.openai_api.held import Room
from tests.support.edits import ONE, TWO, Calls, ask, data_url, mask_of, pixels, send_form, send_json
from tests.support.fake_triton import Call, Picture, Step, fake_triton, four_steps
from tests.support.front import running_front

NO_BODY = "the body must be a form, sent as multipart/form-data, or a JSON object, sent as application/json"


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


def test_openapi_tells_what_is_taken(url):
    """Each body that the schema takes is served, each that it does not take is refused."""
    told = create_app().openapi()["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    form, body = (told[kind]["schema"] for kind in ("multipart/form-data", "application/json"))
    assert form["properties"].keys() == body["properties"].keys() == EditRequest.model_fields.keys()
    files = {name for name, field in form["properties"].items() if "binary" in json.dumps(field)}
    assert files == {"image", "images", "input_image", "mask", "mask_image"}
    for file in files - {"mask", "mask_image"}:
        assert send_form(url, ("prompt", "star"), (file, ONE), (file, TWO))[0] == 200
    one, mask = data_url(ONE), data_url(mask_of())
    bodies: list[dict[str, Any]] = [
        *({"image": image} for image in (one, [one, one], {"image_url": one}, [{"image_url": one}], 7, [], [one] * 17)),
        *({"input_image": image} for image in (one, [one], {"image_url": 7})),
        *({"image": one, field: value} for field in ("mask", "mask_image") for value in (mask, [mask])),
        *({"image": one, **field} for field in ({"n": 11}, {"seed": "a"}, {"strength": 0.5}, {"wings": 2})),
    ]
    for fields in bodies:
        status = send_json(url, **fields)[0]
        assert status == (200 if Draft202012Validator(body).is_valid(fields) else 400), fields


# Forms


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sends_files(url, calls, tmp_path):
    (tmp_path / "star.png").write_bytes(ONE)
    (tmp_path / "mask.png").write_bytes(mask_of())
    parts = ["-F", "image=@star.png", "-F", "mask=@mask.png", "-F", "prompt=a gold star", "-F", "seed=7"]
    done = subprocess.run(
        ["curl", "-s", f"{url}/v1/images/edits", *parts], cwd=tmp_path, capture_output=True, timeout=20
    )
    assert json.loads(done.stdout)["data"][0]["report"]["seed"] == 3
    assert calls.last.pop("mask_image")
    assert calls.last == {"prompt": "a gold star", "seed": 7, "input_image": [ONE]}


@pytest.mark.parametrize(
    "text", ["", "null"], ids=["as Python's client writes null", "as that for JavaScript asks for it"]
)
@pytest.mark.parametrize("name", sorted(set(EditRequest.model_fields) - {"prompt", "negative_prompt", "image"}))
def test_null_is_as_left_out(url, calls, name, text):
    status, _, _ = send_form(url, ("prompt", "star"), ("image", ONE), (name, text))
    assert status == 200
    assert calls.last == {"prompt": "star", "input_image": [ONE]}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "7", 7),
        ("seed", "7.0", 7),
        ("seed", "9223372036854775807", 2**63 - 1),
        ("strength", "1", 1.0),
        ("guidance_scale", "2.5e0", 2.5),
        ("prompt", "true", "true"),
        ("prompt", "7", "7"),
        ("negative_prompt", "null", "null"),
        ("cache_schedule", "9", "9"),
    ],
)
def test_text_is_what_json_would_hold(url, calls, name, text, value):
    parts = [("image", ONE), (name, text), *([] if name == "prompt" else [("prompt", "star")])]
    assert send_form(url, *parts)[0] == 200
    assert calls.last[name] == value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "seven", "seven"),
        ("seed", "7.5", 7.5),
        ("seed", "true", True),
        ("seed", "1.2.3", "1.2.3"),
        ("seed", "9" * 30, int("9" * 30)),
        ("num_inference_steps", "1e20", 1e20),
        ("strength", "NaN", float("nan")),
        ("strength", "1e999", float("inf")),
        ("n", "0", 0),
        ("stream", "perhaps", "perhaps"),
        ("size", "64", "64"),
        ("output_format", "gif", "gif"),
        ("cache_intervall", "3", "3"),
    ],
)
def test_wrong_text_is_refused_in_the_words_of_json(url, name, text, value):
    status, _, answer = send_form(url, ("prompt", "star"), ("image", ONE), (name, text))
    expected, _, in_json = send_json(url, **{"image": data_url(ONE), name: value})
    assert (status, answer) == (expected, in_json)
    assert status == 400
    assert answer["error"]["param"] == name


@pytest.mark.parametrize(
    ("parts", "param", "sentence"),
    [
        ([], "image", "image is missing, must be 1 to 16 pictures: files of multipart/form-data, or base64 or data"),
        ([("seed", "1"), ("seed", "2")], "seed", "seed is given 2 times, must be given once"),
        ([("negative_prompt", b"red")], "negative_prompt", "negative_prompt is a file, must be text"),
        ([("image", ONE), ("images", TWO)], "images", "images is given beside image, must be left out"),
        ([("input_image", ONE), ("image[]", TWO)], "image", "input_image is given beside image, must be left"),
        ([("image", ONE), ("mask", ONE), ("mask_image", TWO)], "mask", "mask_image is given beside mask"),
        ([("image", ONE), ("mask", ONE), ("mask", TWO)], "mask", "must be a PNG, JPEG or WebP file"),
        ([("image", b"")], "image", "image is missing"),
        ([("image", ONE), ("image", b"")], "image", "must be a PNG, JPEG or WebP file"),
        (
            [("image", "no base64!")],
            "image",
            'image is "no base64!", must be a PNG, JPEG or WebP file, in JSON as base',
        ),
        ([("image", ONE)] * 65, None, "the form cannot be read: Too many files"),
        ([("style", "a")] * 201, None, "the form cannot be read: Too many fields"),
    ],
)
def test_forms_that_are_wrong_say_so(url, parts, param, sentence):
    status, _, answer = send_form(url, ("prompt", "star"), *parts)
    assert (status, answer["error"]["param"]) == (400, param)
    assert sentence in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (b"", "multipart/form-data; boundary=x", "image is missing"),
        (b"{}", "multipart/form-data", "the form cannot be read: Missing boundary"),
        (b"--x\r\nno header\r\n\r\n\r\n--x--", "multipart/form-data; boundary=x", "the form cannot be read: "),
        (b"a=b", "application/x-www-form-urlencoded", NO_BODY),
        (b"{}", "text/plain", NO_BODY),
        (b"{", "application/json", NO_BODY),
        (b"[]", "application/json", NO_BODY),
        (b"\xff", "application/json", NO_BODY),
        (b"[" * 15_000, "application/json", NO_BODY),
        (b"[" * 30_000, "application/json", "the body has 30000 brackets and commas, must have at most 20000"),
    ],
)
def test_bodies_that_are_neither_say_so(url, body, kind, sentence):
    status, _, answer = ask(url, body, kind)
    assert status == 400
    assert answer["error"]["message"].startswith(sentence)


def test_files_are_not_written_to_a_disk(url, calls, monkeypatch):
    def rolled(_: Any) -> None:
        raise AssertionError("a file of a form has left the memory")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", rolled)
    file = ONE + bytes(3 << 20)
    assert send_form(url, ("prompt", "star"), ("image", file))[0] == 200
    assert calls.last["input_image"] == [file]


# JSON


@pytest.mark.parametrize(
    "fields",
    [
        {"image": data_url(ONE)},
        {"image": base64.b64encode(ONE).decode()},
        {"image": base64.encodebytes(ONE).decode()},
        {"image": [data_url(ONE)]},
        {"images": [{"image_url": data_url(ONE)}]},
        {"images": [{"image_url": data_url(ONE), "file_id": None}]},
        {"input_image": data_url(ONE)},
    ],
)
def test_a_picture_in_json(url, calls, fields):
    assert send_json(url, **fields)[0] == 200
    assert calls.last == {"prompt": "star", "input_image": [ONE]}


def test_pictures_and_a_mask_in_json(url, calls):
    pictures = [{"image_url": data_url(ONE)}, {"image_url": data_url(TWO)}]
    assert send_json(url, images=pictures, mask={"image_url": data_url(mask_of("RGBA"))}, strength=0.5)[0] == 200
    assert calls.last["input_image"] == [ONE, TWO]
    assert pixels(calls.last["mask_image"][0])[0].tolist() == [255] * 3 + [0] * 3
    assert calls.last["strength"] == 0.5


def test_the_models_own_mask_is_handed_on_as_it_is(url, calls):
    assert send_json(url, image=data_url(ONE), mask_image=data_url(mask_of()))[0] == 200
    assert calls.last["mask_image"] == [mask_of()]


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"images": [{"file_id": "file-1"}]}, "images", "must have an image_url: this front keeps no files"),
        ({"image": data_url(ONE), "mask": {"file_id": "file-1"}}, "mask", "must have an image_url: this front keeps"),
        ({"image": []}, "image", "image is [], must be 1 to 16 pictures"),
        ({"image": ""}, "image", 'image is "", must be a PNG, JPEG or WebP file'),
        ({"image": 7}, "image", "image is 7, must be a PNG, JPEG or WebP file, in JSON as base64 or a data URL"),
        ({"image": "/etc/hosts"}, "image", 'image is "/etc/hosts", must be a PNG'),
        ({"image": "data:image/png,star"}, "image", 'image is "data:image/png,star", must be a PNG'),
        ({"image": "\u00e9\u00e9\u00e9\u00e9"}, "image", "must be a PNG"),
        ({"images": [{}]}, "images", "images is [{}], must be a PNG"),
        ({"image": None}, "image", "image is missing"),
        ({"image": "https://example.com/a.png"}, "image", "must be base64 or a data URL: this front fetches nothing"),
    ],
)
def test_pictures_in_json_that_are_none(url, fields, param, sentence):
    status, _, answer = send_json(url, **fields)
    assert (status, answer["error"]["param"]) == (400, param)
    assert sentence in answer["error"]["message"]


# How large a body is


def test_a_body_of_an_edit_may_be_large(client, calls):
    file = ONE + bytes(20 << 20)
    client.images.edit(image=file, prompt="star")
    assert calls.last["input_image"] == [file]


@pytest.mark.parametrize(
    ("path", "most"), [("/v1/images/edits", MAX_EDIT_BYTES), ("/v1/images/generations", MAX_BODY_BYTES)]
)
def test_and_no_larger_than_its_address_takes(url, path, most):
    status, _, answer = ask(url, b" " * (most + 1), "application/json", path)
    assert (status, answer["error"]["message"]) == (413, f"the body is larger than {most} bytes")
    assert answer["error"]["code"] == "too_large"


def test_openais_client_reads_that_its_picture_is_too_large(url):
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as client,
        pytest.raises(openai.APIStatusError, match="the body is larger than") as caught,
    ):
        client.images.edit(image=bytes(MAX_EDIT_BYTES + 1), prompt="star")
    assert caught.value.status_code == 413
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"


def test_results_that_would_send_too_much_are_refused(client):
    with pytest.raises(openai.BadRequestError, match=r"n is 10, must be at most 6 where the pictures have 20971\d\d\d"):
        client.images.edit(image=ONE + bytes(20 << 20), prompt="star", n=10)


def test_all_bodies_together_have_a_limit(monkeypatch):
    """Each is held until its request ends, with a copy for each further result."""
    begun, ends = threading.Semaphore(0), threading.Event()

    def waits(call: Call) -> Iterator[Step | Picture]:
        begun.release()
        ends.wait(20)
        yield from four_steps(call)

    file = ONE + bytes(100_000)
    monkeypatch.setattr(Room.__init__, "__defaults__", (350_000,))
    with fake_triton(waits) as triton, running_front(triton) as url, ThreadPoolExecutor() as threads:
        sent = [threads.submit(send_form, url, ("prompt", "star"), ("image", file)) for _ in range(2)]
        assert all(begun.acquire(timeout=20) for _ in sent)
        for parts in ([("image", file), ("mask", bytes(60_000))], [("image", file), ("n", "2")]):
            status, headers, answer = send_form(url, ("prompt", "star"), *parts)
            assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "unavailable")
            assert re.match(r"the bodies of other requests take 200\d\d\d bytes", answer["error"]["message"])
        ends.set()
        assert [each.result()[0] for each in sent] == [200, 200]
        assert send_form(url, ("prompt", "star"), ("image", file), ("n", "2"))[0] == 200


def test_a_body_that_is_late_is_told_so(url, monkeypatch):
    monkeypatch.setattr("plugin.ops.http_server.BODY_S", 0.3)
    with socket.create_connection(urlsplit(url).netloc.split(":"), timeout=20) as connection:
        head = f"POST /v1/images/edits HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nContent-Type: {'application/json'}"
        began = time.monotonic()
        connection.sendall(f"{head}\r\n\r\n{{".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 10
