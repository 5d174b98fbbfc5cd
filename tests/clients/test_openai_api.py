"""The front against throwaway models in a real Triton: OpenAI's own client, errors, cancels, hostile requests."""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from PIL import Image

from clients.openai_api import MAX_BODY_BYTES
from plugin.ops.server import Server
from tests.support.front import running_front
from tests.support.throwaway import FIELDS
from triton_taylorseer_client import Client

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)  # what the throwaway models answer


@pytest.fixture(scope="module")
def url(echo: Server) -> Iterator[str]:
    with running_front(echo.grpc_url, default_model="echo") as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(
    url: str, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A request as it is: no client tidies its path or body."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def generate(url: str, **fields: object) -> tuple[int, dict[str, str], dict]:
    body = json.dumps(fields).encode()
    status, headers, content = ask(url, "POST", "/v1/images/generations", body, Content_Type="application/json")
    return status, headers, json.loads(content)


def pixels(b64_json: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))


def cancelled(echo: Server, steps: int) -> bool:
    """Whether the model has heard within some seconds that a request of so many steps was cancelled."""
    with Client(echo.grpc_url, "echo") as client:
        for _ in range(50):
            *_, last = client.stream("red apple", num_inference_steps=1)
            if steps in last.report["cancelled"]:
                return True
            time.sleep(0.1)
    return False


def test_the_models_are_listed_the_default_first(client, url):
    assert [model.id for model in client.models.list()] == ["echo", "emoji"]
    assert json.loads(ask(url, "GET", "/healthz")[2]) == {"models": ["echo", "emoji"]}


def test_a_picture_arrives_as_it_is(client):
    answer = client.images.generate(prompt="red apple", model="echo")
    assert np.array_equal(pixels(answer.data[0].b64_json), IMAGE)
    assert answer.size == "6x4"
    assert answer.output_format == "png"
    assert abs(answer.created - time.time()) < 10


def test_size_and_every_field_reach_the_model(client):
    fields = {name: {"STRING": "text", "FP32": 0.5, "BOOL": True}.get(kind, 3) for name, kind in FIELDS.items()}
    own = {name: fields[name] for name in fields if name not in ("prompt", "height", "width", "preview", "num_frames")}
    pictures = {"input_image": ["data:image/png;base64,AAEC", "AwQ="], "mask_image": "BQY="}
    answer = client.images.generate(prompt="red apple", model="echo", size="64x96", extra_body=own | pictures)
    received = {name: value for name, (_, _, value) in answer.data[0].report["received"].items()}
    files = {"input_image": ["000102", "0304"], "mask_image": ["0506"]}
    assert received == {**own, "prompt": "red apple", "width": 64, "height": 96, **files}


def test_the_pictures_of_an_edit_reach_the_model(client):
    answer = client.images.edit(
        prompt="red apple", model="echo", image=[b"\x00\x01\x02", b"\x03\x04"], extra_body={"strength": 0.5}
    )
    received = answer.data[0].report["received"]
    assert received["input_image"] == ["object", [2], ["000102", "0304"]]
    assert received["strength"] == ["float32", [1], 0.5]
    *_, last = client.images.edit(prompt="red apple", image=b"\x05", stream=True, partial_images=1)
    assert last.report["received"]["input_image"][2] == ["05"]


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_other_formats(client, output_format):
    answer = client.images.generate(prompt="apple", output_format=output_format, output_compression=80)
    image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert (image.format, image.size) == (output_format.upper(), (6, 4))
    assert answer.output_format == output_format


def test_a_video_is_an_mp4(client):
    answer = client.images.generate(prompt="apple", extra_body={"num_frames": 5})
    assert answer.output_format is None, "OpenAI's type has no name for it"
    assert answer.data[0].media_type == "video/mp4"
    assert base64.b64decode(answer.data[0].b64_json)[4:8] == b"ftyp"


def test_several_pictures_have_seeds_in_a_row(client):
    answer = client.images.generate(prompt="apple", n=3, extra_body={"seed": 40})
    assert [each.report["received"]["seed"][2] for each in answer.data] == [40, 41, 42]


def test_a_stream_has_partial_images_then_the_picture(client):
    events = list(client.images.generate(prompt="red apple", stream=True, partial_images=2))
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 2,
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    # Previews come at steps 5 and 10 of 10: the first is the one due after a third.
    assert [pixels(event.b64_json)[0, 0, 0] for event in events[:2]] == [5, 10]
    assert np.array_equal(pixels(events[2].b64_json), IMAGE)


def test_a_stream_without_partial_images_asks_for_none(client):
    (event,) = client.images.generate(prompt="red apple", stream=True)
    assert "preview" not in event.report["received"]


def test_progress_comes_where_it_is_asked_for(client):
    events = client.images.generate(
        prompt="red apple", stream=True, extra_body={"progress": True, "num_inference_steps": 4}
    )
    progress = [(event.step, event.num_steps) for event in events if event.type == "image_generation.progress"]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("prompt", "status", "code", "message"),
    [
        ("invalid", 400, "invalid_value", "cache_order is 9, must be from 0 to 4"),
        ("full", 503, "unavailable", "2 requests are in flight and 1 wait"),
        ("cancelled", 499, "cancelled", "cancelled after 3 of 8 steps"),
        ("late", 504, "deadline_exceeded", "DEADLINE: deadline_ms of 5 passed after 3 of 8 steps"),
        ("broken", 500, "server_error", "it broke"),
    ],
)
def test_errors_have_the_servers_sentence(client, prompt, status, code, message):
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.generate(prompt=prompt)
    assert caught.value.status_code == status
    assert caught.value.body["code"] == code
    assert message in caught.value.body["message"]
    assert caught.value.body["param"] == ("cache_order" if prompt == "invalid" else None)
    with pytest.raises(openai.APIError, match=message):
        list(client.images.generate(prompt=prompt, stream=True))


def test_a_refusal_says_when_to_come_back_and_openais_client_does(echo, url):
    status, headers, _ = generate(url, prompt="busy", seed=77_001)
    assert status == 503
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1500"), "1 s and a little more"
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as client:
        answer = client.images.generate(prompt="busy", extra_body={"seed": 77_002})
    assert answer.data[0].report["received"]["seed"][2] == 77_002


def test_one_failure_of_several_ends_the_others(echo, url):
    """Of seeds 88 and 89 the model refuses both at first: the answer is a refusal, not half of the pictures."""
    status, _, answer = generate(url, prompt="busy", n=2, seed=88_000)
    assert (status, answer["error"]["code"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 11}, "n is 11, must be less than or equal to 10"),
        ({"n": 2, "stream": True}, "n is 2, must be 1 with stream: no event says which picture it shows"),
        ({"size": "64"}, 'size is "64", must be auto, or width and height in pixels, as 64x96'),
        ({"size": "64x64; rm"}, "size is"),
        ({"response_format": "raw"}, "response_format is \"raw\", must be 'b64_json' or 'url'"),
        ({"seed": "seven"}, 'seed is "seven", must be a valid integer'),
        ({"seed": 2**70}, f"seed is {2**70}, must be an integer of 64 bits, in the range that the model has for it"),
        ({"cache_intervall": 3}, "cache_intervall is not a field, must be one of: background, "),
        ({"prompt": ["a"]}, "prompt is"),
        ({"model": "../../etc"}, "model is ../../etc, must be one that is ready: echo, emoji"),
        ({"model": "\ud800"}, "model is \ud800, must be one that is ready: echo, emoji"),
        ({"prompt": "red \ud800 apple"}, "prompt is invalid at character 4"),
    ],
)
def test_what_is_wrong_is_said(url, fields, message):
    status, _, answer = generate(url, **{"prompt": "red apple", **fields})
    assert status == (404 if "model" in fields else 400)
    assert message in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == next(iter(fields))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", b'"text"', b"{" * 10_000, b'{"n": ' + b"9" * 5000 + b"}"]
)
def test_bodies_that_are_no_object(url, body):
    status, _, content = ask(url, "POST", "/v1/images/generations", body, Content_Type="application/json")
    assert status == 400
    error = json.loads(content)["error"]
    assert error["message"] == "the body must be a JSON object, sent as application/json"
    assert error["param"] is None


def test_a_body_that_is_too_large_is_not_read(url):
    status, _, content = ask(url, "POST", "/v1/images/generations", b" " * (MAX_BODY_BYTES + 1))
    assert status == 413
    assert json.loads(content)["error"]["message"] == f"the body is larger than {MAX_BODY_BYTES} bytes"


def test_nor_is_one_that_does_not_say_how_long_it_is(url):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    chunks = (b" " * 65_536 for _ in range(MAX_BODY_BYTES // 65_536 + 1))
    connection.request(
        "POST", "/v1/images/generations", chunks, {"Content-Type": "application/json"}, encode_chunked=True
    )
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/%2e%2e/messages.py", "/..%2fclient.py", "//etc/passwd", "/.git"]
)
def test_only_the_page_is_served(url, path):
    status, _, content = ask(url, "GET", path)
    assert status == 404
    assert " is not served: served are POST /v1/images/generations, " in json.loads(content)["error"]["message"]


def test_the_page_loads_nothing_from_elsewhere(url):
    status, headers, content = ask(url, "GET", "/")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert b"http" not in content.replace(b"http-equiv", b"")


def test_with_a_key_only_who_has_it_is_served(echo):
    with running_front(echo.grpc_url, api_key="secret") as url:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret"},
            {"Authorization": "Bearer \xe9"},
        ):
            status, answered, content = ask(url, "GET", "/v1/models", **headers)
            assert (status, json.loads(content)["error"]["code"]) == (401, "invalid_api_key")
            assert answered["www-authenticate"] == "Bearer"
        assert ask(url, "POST", "/v1/images/edits", b"image")[0] == 401, "without a look at the body"
        assert ask(url, "GET", "/")[0] == 200, "the page itself asks for the key"
        assert ask(url, "GET", "/healthz")[0] == 200
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
            assert client.images.generate(prompt="red apple").data[0].b64_json


@pytest.mark.parametrize(("steps", "stream"), [(901, False), (902, True)])
def test_a_client_that_leaves_cancels_its_request(echo, url, steps, stream):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    fields = {"prompt": "red apple", "num_inference_steps": steps, "stream": stream, "progress": True}
    connection.request("POST", "/v1/images/generations", json.dumps(fields), {"Content-Type": "application/json"})
    if stream:
        assert b"progress" in connection.getresponse().readline()
    else:
        time.sleep(0.5)
    connection.sock.close() if connection.sock else connection.close()
    connection.close()
    assert cancelled(echo, steps)


def test_the_fronts_own_time_limit(echo):
    with running_front(echo.grpc_url, default_model="echo", timeout_s=0.3) as url:
        status, _, answer = generate(url, prompt="red apple", num_inference_steps=903)
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert cancelled(echo, 903)


def test_without_triton_there_is_a_sentence():
    with running_front("127.0.0.1:1") as url:
        for status, headers, content in (ask(url, "GET", "/healthz"), ask(url, "GET", "/v1/models")):
            assert status == 503
            assert "no server answers at 127.0.0.1:1" in json.loads(content)["error"]["message"]
            assert headers["retry-after"] == "1"
