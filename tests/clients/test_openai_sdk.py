"""OpenAI's Python client against the front and a pretended Triton: what it sends and what its types are."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse, Model
from openai.types.image_generate_params import ImageGenerateParamsBase, ImageGenerateParamsNonStreaming
from PIL import Image
from pydantic import BaseModel

from clients.openai_api import create_app
from clients.openai_api.edit_fields import EditRequest
from clients.openai_api.fields import ImageRequest
from clients.openai_api.not_served import SERVED, SERVED_OF_A1111
from clients.openai_api.refusals import LONGEST_S, SLACK, Places
from plugin.fields import FIELDS
from tests.support.documents import ROOT, tables_of
from tests.support.fake_triton import PICTURE, Call, Failure, Picture, Step, fake_triton, four_steps
from tests.support.front import running_front
from triton_taylorseer_client.async_client import AsyncClient
from triton_taylorseer_client.messages import INPUTS

PROMPTS = {
    "small": Failure("INVALID_ARG", "height is 1024, must be a multiple of 8 from 32 to 128"),
    "memory": Failure("INVALID_ARG", "height, width, num_frames and cache_order make a request of 9 MiB, must be less"),
    "full": Failure("UNAVAILABLE", "2 requests are in flight and 1 wait: try again in 0.4 s"),
    "dead": Failure(
        "UNAVAILABLE", "emoji_stream has not been heard from for 30 s, its process may have ended: try again"
    ),
    "late": Failure("CANCELLED", "DEADLINE: deadline_ms of 5 cannot be met"),
    "broken": Failure("INTERNAL", "it broke"),
}


def behaviour(call: Call) -> Iterator[Step | Picture | Failure]:
    prompt = call.fields.get("prompt")
    if prompt in PROMPTS:
        yield PROMPTS[prompt]
    elif prompt == "fails later":
        yield Step(1, 4)
        time.sleep(2.2)  # the front waits this long for a refusal
        yield PROMPTS["broken"]
    elif prompt == "infinite":
        yield Picture('{"audits": [[3, Infinity], [6, NaN]], "seed": 3}')
    else:
        yield from four_steps(call)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    aliases = {"gpt-image-2": "emoji", "dall-e-3": "gone"}
    with (
        fake_triton(behaviour, models=("emoji", "swan")) as triton,
        running_front(triton, default_model="emoji", aliases=aliases) as url,
    ):
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(url: str, method: str, path: str, fields: dict[str, Any] | None = None, **headers: str) -> Any:
    """Status, headers and JSON of a request as it is."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    body = None if fields is None else json.dumps(fields)
    connection.request(method, path, body, {"Content-Type": "application/json", **sent})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def generate(url: str, **fields: Any) -> Any:
    status, headers, content = ask(url, "POST", "/v1/images/generations", {"prompt": "star", **fields})
    return status, headers, json.loads(content, parse_constant=pytest.fail)


def tries_of(error: openai.APIStatusError) -> int:
    """How often the client has sent the request."""
    return 1 + int(error.request.headers["x-stainless-retry-count"])


def received(answer: ImagesResponse) -> dict[str, Any]:
    return answer.data[0].report["received"]


# What clients send


def test_every_parameter_of_the_pinned_client_is_a_field():
    assert set(ImageGenerateParamsBase.__annotations__) <= set(ImageRequest.model_fields)
    assert set(ImageGenerateParamsNonStreaming.__annotations__) <= set(ImageRequest.model_fields)


def test_every_input_of_the_models_is_a_field():
    assert {field.name for field in FIELDS} <= set(ImageRequest.model_fields)


def test_the_reference_has_every_field_of_the_front_with_its_default():
    _, *rows = tables_of(ROOT / "docs/reference.md")["The front's fields"]
    documented = {name: row[1].strip("`") for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    of_edits = set(EditRequest.model_fields) - set(ImageRequest.model_fields)
    assert of_edits <= set(documented)
    documented = {name: default for name, default in documented.items() if name not in of_edits | set(INPUTS)}
    expected = {name: field.default for name, field in ImageRequest.model_fields.items() if name not in INPUTS}
    assert documented.pop("model") == "the default model"
    assert expected.pop("model") is None
    assert documented == {
        name: str(default).replace("False", "false").replace("None", "none") for name, default in expected.items()
    }


@pytest.mark.parametrize("name", sorted(set(ImageRequest.model_fields) - {"prompt"}))
def test_null_is_as_left_out(url, name):
    status, _, answer = generate(url, **{name: None})
    assert status == 200
    assert answer["data"][0]["report"]["received"] == {"prompt": "star"}
    assert answer["data"][0]["report"]["model"] == "emoji_stream"


def test_the_client_sends_null_for_none(client):
    nothing: dict[str, Any] = dict.fromkeys(set(ImageGenerateParamsBase.__annotations__) - {"prompt", "user"})
    assert received(client.images.generate(prompt="star", stream=None, **nothing)) == {"prompt": "star"}


def test_null_for_what_is_no_field_is_refused(url):
    status, _, answer = generate(url, cache_intervall=None)
    assert (status, answer["error"]["param"]) == (400, "cache_intervall")


def test_fields_without_a_meaning_here_are_accepted(client):
    answer = client.images.generate(
        prompt="star",
        background="transparent",
        complexity="high",
        frame_count=4,
        frame_duration_ms=100,
        moderation="low",
        quality="hd",
        safety_identifier="someone",
        style="vivid",
        svg={"model": "none", "reasoning": {"effort": "low"}},
        user="someone",
        extra_body={"input_fidelity": "high"},
    )
    assert received(answer) == {"prompt": "star"}
    assert answer.background == "opaque"


@pytest.mark.parametrize("output_format", ["gif", "svg"])
def test_formats_that_are_not_made_are_refused(client, output_format):
    with pytest.raises(openai.BadRequestError, match=f"{output_format}\", must be 'png', 'jpeg' or 'webp'") as caught:
        client.images.generate(prompt="star", output_format=output_format)
    assert caught.value.param == "output_format"


@pytest.mark.parametrize("model", [None, "", "emoji", "gpt-image-2"])
def test_no_name_an_empty_one_and_an_alias_stand_for_a_model(client, model):
    answer = client.images.generate(prompt="star", model=model)
    assert answer.data[0].report["model"] == "emoji_stream"


def test_width_and_height_are_fields_too(client):
    answer = client.images.generate(prompt="star", extra_body={"width": 64, "height": 96})
    assert received(answer) == {"prompt": "star", "width": 64, "height": 96}
    same = client.images.generate(prompt="star", size="64x96", extra_body={"width": 64})
    assert received(same) == received(answer)


def test_a_size_and_a_width_that_differ_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="size is 64x96 and width is 32, must agree") as caught:
        client.images.generate(prompt="star", size="64x96", extra_body={"width": 32})
    assert caught.value.param == "size"


def test_a_url_is_a_data_url(client):
    answer = client.images.generate(prompt="star", response_format="url", output_format="webp", n=2)
    for each in answer.data:
        assert each.b64_json is None
        start, _, file = each.url.partition(",")
        assert start == "data:image/webp;base64"
        assert Image.open(io.BytesIO(base64.b64decode(file))).size == (6, 4)
    ImagesResponse.model_validate(answer.to_dict(), strict=True)


def test_a_url_of_a_video_is_an_mp4(client):
    answer = client.images.generate(prompt="star", response_format="url", extra_body={"num_frames": 5})
    start, _, file = answer.data[0].url.partition(",")
    assert start == "data:video/mp4;base64"
    assert base64.b64decode(file)[4:8] == b"ftyp"
    ImagesResponse.model_validate(answer.to_dict(), strict=True)


# What clients get: without `strict` their types take anything


def strictly(kind: type[BaseModel], answer: Any) -> None:
    kind.model_validate(answer.to_dict(), strict=True)


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"output_format": "jpeg", "size": "64x64"}, {"quality": "high"}])
def test_answers_are_of_the_clients_type(client, fields):
    answer = client.images.generate(prompt="star", **fields)
    strictly(ImagesResponse, answer)
    assert answer.usage.total_tokens == 0


def test_events_are_of_the_clients_types(client):
    *partial, last = client.images.generate(prompt="star", stream=True, partial_images=3)
    assert [each.partial_image_index for each in partial] == [0, 1, 2]
    for each in partial:
        strictly(ImageGenPartialImageEvent, each)
    strictly(ImageGenCompletedEvent, last)
    assert last.usage.total_tokens == 0


def test_preview_alone_sends_all_that_there_are(client):
    *partial, last = client.images.generate(prompt="star", stream=True, extra_body={"preview": True})
    shades = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each.b64_json))))[0, 0, 0] for each in partial]
    assert shades == [1, 2, 3, 4]
    assert last.type == "image_generation.completed"


def test_preview_that_contradicts_partial_images_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="preview is false and partial_images is 2, must agree"):
        client.images.generate(prompt="star", stream=True, partial_images=2, extra_body={"preview": False})


def test_models_are_of_the_clients_type(client):
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["emoji", "swan"]
    for name, model in models.items():
        strictly(Model, model)
        assert client.models.retrieve(name) == model
    alias = client.models.retrieve("gpt-image-2")
    strictly(Model, alias)
    assert (alias.id, alias.parameters) == ("gpt-image-2", models["emoji"].parameters)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("unicorn", "model is unicorn, must be one that is ready: emoji, swan"),
        ("black-forest/flux", "model is black-forest/flux, must be one that is ready: emoji, swan"),
        ("dall-e-3", "model is dall-e-3, which stands for gone, must be one that is ready: emoji, swan"),
    ],
)
def test_models_that_are_not_there_are_named(client, name, sentence):
    for call in (lambda: client.models.retrieve(name), lambda: client.images.generate(prompt="star", model=name)):
        with pytest.raises(openai.NotFoundError, match=sentence) as caught:
            call()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_report_that_is_no_json_arrives_as_json(client, url):
    _, _, answer = generate(url, prompt="infinite")
    assert answer["data"][0]["report"] == {"audits": [[3, None], [6, None]], "seed": 3}
    (last,) = client.images.generate(prompt="infinite", stream=True)
    assert last.report["audits"] == [[3, None], [6, None]]


# What is not served

EDITS = "is not served: POST /v1/images/edits makes pictures from a picture and a prompt"
A_VIDEO = "is not served: POST /v1/videos makes a video, from a prompt or from input_reference too"
NOT_KEPT = "is not served: nothing of a response is kept, POST /v1/responses answers with all of it"
OTHER = f"is not served: served are {SERVED}"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda c: c.post("/images/variations", body={"image": "x" * (8 << 20)}, cast_to=object),
            f"POST /v1/images/variations {EDITS}",
        ),
        (
            lambda c: c.post("/videos/video_1/remix", body={"prompt": "a"}, cast_to=object),
            f"POST /v1/videos/video_1/remix {A_VIDEO}",
        ),
        (lambda c: c.chat.completions.list(), "GET /v1/chat/completions is not served, its method must be POST"),
        (lambda c: c.responses.delete("resp_1"), f"DELETE /v1/responses/resp_1 {NOT_KEPT}"),
        (lambda c: c.completions.create(model="a", prompt="b"), f"POST /v1/completions {OTHER}"),
        (lambda c: c.embeddings.create(model="a", input="b"), f"POST /v1/embeddings {OTHER}"),
        (lambda c: c.audio.speech.create(model="a", input="b", voice="c"), f"POST /v1/audio/speech {OTHER}"),
        (lambda c: c.models.delete("emoji"), "DELETE /v1/models/emoji is not served, its method must be GET"),
    ],
)
def test_what_is_not_served_says_so(url, call, sentence):
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as client,
        pytest.raises(openai.APIStatusError, match=re.escape(sentence)) as caught,
    ):
        call(client)
    assert caught.value.status_code == (405 if "method" in sentence else 404)
    assert caught.value.type == "invalid_request_error"
    assert tries_of(caught.value) == 1, "an answer that will not change is not asked for again"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/emoji", "GET, HEAD"),
        ("GET", "/v1/images/generations", "POST"),
        ("HEAD", "/v1/images/generations", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(url, method, path, allowed):
    status, headers, content = ask(url, method, path)
    assert (status, headers["allow"]) == (405, allowed)
    assert method == "HEAD" or json.loads(content)["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/images/generations", "/v1", "/v2/models/emoji/infer"])
def test_other_addresses_say_what_is_served(url, path):
    status, _, content = ask(url, "GET", path)
    message = json.loads(content)["error"]["message"]
    assert status == 404
    assert message.startswith(f"GET {path} is not served: ")
    assert SERVED in message


def test_what_is_said_to_be_served_is_what_is_served():
    paths = create_app().openapi()["paths"]
    names = re.compile("{(name|video_id)}")
    served = {f"{method.upper()} {names.sub('{id}', path)}" for path in paths for method in paths[path]}
    assert served == set(f"{SERVED}, {SERVED_OF_A1111}".replace(" and ", ", ").split(", "))


def test_a_slash_at_the_end_changes_nothing(url):
    assert generate(url)[0] == 200
    assert ask(url, "POST", "/v1/images/generations/", {"prompt": "star"})[0] == 200
    for path in ("/healthz", "/v1/models", "/v1/models/emoji"):
        assert ask(url, "GET", f"{path}/")[::2] == ask(url, "GET", path)[::2]


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/models/emoji", "/v1/models/unicorn", "/", "/app.js"])
def test_head_has_gets_status_and_no_body(url, path):
    expected, headers, content = ask(url, "GET", path)
    status, headed, nothing = ask(url, "HEAD", path)
    assert (status, nothing) == (expected, b"")
    assert headed["content-length"] == headers["content-length"] == str(len(content))


# Errors


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "small", "size": "1024x1024"}, "size"),
        ({"prompt": "small", "height": 1024}, "height"),
        ({"prompt": "memory", "size": "64x64"}, "size"),
        ({"prompt": "small", "model": "gpt-image-2", "size": "1024x1024"}, "size"),
        ({"size": "big"}, "size"),
        ({"n": 0}, "n"),
        ({"n": "many"}, "n"),
        ({"prompt": ["star"]}, "prompt"),
        ({"partial_images": 9}, "partial_images"),
        ({"cache_intervall": 3}, "cache_intervall"),
        ({"seed": 2**63 - 1, "n": 2}, "seed"),
    ],
)
def test_what_is_wrong_with_a_field_names_it(url, fields, param):
    for stream in (False, True):
        status, _, answer = generate(url, **fields, **({"stream": True} if stream and "n" not in fields else {}))
        assert (status, answer["error"]["param"]) == (400, param)
        assert answer["error"]["message"].startswith(("height", param))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ('"guidance_scale": 1e308', "guidance_scale is 1e+308, must be a number that 32 bits can hold"),
        ('"guidance_scale": 1e999', "guidance_scale is Infinity, must be a finite number"),
        ('"guidance_scale": true', "guidance_scale is true, must be a number"),
        ('"deadline_ms": 1e20', "deadline_ms is 1e+20, must be an integer of 32 bits"),
        ('"deadline_ms": 100000000000000000000', "deadline_ms is 100000000000000000000, must be an integer of 32 bits"),
        ('"seed": 9223372036854775808', "seed is 9223372036854775808, must be an integer of 64 bits"),
        ('"seed": 7.5', "seed is 7.5, must be a valid integer"),
        ('"n": true', "n is true, must be a number"),
        ('"model": "\\ud800"', "model is \ud800, must be one that is ready"),
        ('"size": "\\ud800"', 'size is "\\ud800", must be auto'),
        ('"\\ud800": 1', 'a field is "\\ud800", must be Unicode text'),
    ],
)
def test_extreme_values_are_shown_as_they_were_sent(url, sent, message):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request(
        "POST", "/v1/images/generations", f'{{"prompt": "star", {sent}}}', {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    error = json.loads(answer.read())["error"]
    connection.close()
    assert answer.status == (404 if "model" in sent else 400)
    assert error["message"].startswith(message)
    named = json.loads(sent.partition(":")[0])
    assert error["param"] == (None if named == "\ud800" else named)


# Retries


@pytest.mark.parametrize(("prompt", "expected"), [("late", 1), ("small", 1), ("full", 2), ("broken", 2)])
def test_what_will_not_change_is_not_sent_again(url, prompt, expected):
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=1) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.images.generate(prompt=prompt)
    assert tries_of(caught.value) == expected


def test_those_who_were_refused_are_told_times_that_differ():
    """The server says 0.4 s to each: its next place. Ten of them need ten places."""
    with fake_triton(behaviour) as triton, running_front(triton) as url:
        began = time.monotonic()
        headers = [generate(url, prompt="full")[1] for _ in range(10)]
        passed_ms = 1000 * (time.monotonic() - began)
    told = [int(each["retry-after-ms"]) for each in headers]
    for number, milliseconds in enumerate(told, 1):
        assert 400 * SLACK * number - passed_ms - 1 <= milliseconds <= 400 * SLACK * number + 1
    assert [int(each["retry-after"]) for each in headers] == [-(-each // 1000) for each in told]


@pytest.mark.parametrize(("told", "times"), [("0", 1), ("2", 3), ("99", 1), ("-1", 1), ("\xb2", 1)])
def test_who_comes_back_in_vain_is_told_more(told, times):
    with fake_triton(behaviour) as triton, running_front(triton) as url:
        fields = {"prompt": "full"}
        headers = ask(url, "POST", "/v1/images/generations", fields, X_Stainless_Retry_Count=told)[1]
    assert int(headers["retry-after-ms"]) == pytest.approx(400 * SLACK * times, abs=1)


def test_a_refusal_without_a_time_is_for_a_second(url):
    status, headers, answer = generate(url, prompt="dead")
    assert (status, headers["retry-after"], headers["retry-after-ms"]) == (503, "1", "1000")
    assert "its process may have ended" in answer["error"]["message"]


def test_promised_places_are_one_after_the_other():
    now = [100.0]
    places = Places(lambda: now[0])
    told = [places.promise(2.0), places.promise(2.0), places.promise(2.0, places=3)]
    assert told == [2.0 * SLACK, 4.0 * SLACK, 10.0 * SLACK]
    now[0] += 4.0 * SLACK  # the first two have come back
    assert places.promise(2.0) == 8.0 * SLACK
    now[0] += 100.0
    assert places.promise(2.0) == 2.0 * SLACK, "whoever was refused long ago has come back"


def test_places_are_as_far_apart_as_requests_end():
    now = [100.0]
    places = Places(lambda: now[0])
    places.end()  # before the rush: not counted
    assert places.promise(0.1, places=100) == pytest.approx(10.0 * SLACK)
    now[0] += 4.0
    for _ in range(8):  # one in 0.5 s, where the model has told of 0.1 s
        places.end()
    assert places.promise(0.1) == pytest.approx((10.0 + 0.5) * SLACK - 4.0)


def test_no_time_is_longer_than_the_client_waits():
    places = Places(lambda: 0.0)
    told = [places.promise(1.0) for _ in range(1000)]
    assert max(told) <= LONGEST_S == openai._constants.MAX_RETRY_AFTER_DELAY
    assert len(set(told[200:])) > 700, "they do not come back all at once"


class Queue:
    """A model with places for two requests of 40 ms, which tells the others when one of them is free."""

    def __init__(self) -> None:
        self.taken = 0
        self.lock = threading.Lock()

    def __call__(self, call: Call) -> Iterator[Picture | Failure]:
        with self.lock:
            full = self.taken == 2
            self.taken += not full
        if full:
            yield Failure("UNAVAILABLE", "1 requests are in flight and 1 wait: try again in 0.1 s")
            return
        time.sleep(0.04)
        with self.lock:
            self.taken -= 1
        yield Picture({})


def test_all_of_many_find_room_when_they_come_back():
    """Told 1 s each, as the server's message rounded up, most of them came back together, twice, and failed."""

    async def all_at_once(url: str) -> int:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as client:
            answers = await asyncio.gather(*(client.images.generate(prompt="star") for _ in range(24)))
        return len([answer for answer in answers if answer.data[0].b64_json])

    with fake_triton(Queue()) as triton, running_front(triton) as url:
        assert asyncio.run(all_at_once(url)) == 24


# Request ids


def test_answers_have_an_id_that_the_client_reads(client, url):
    answers = [client.images.with_raw_response.generate(prompt="star") for _ in range(2)]
    ids = [each.request_id for each in answers]
    assert ids[0] != ids[1]
    assert all(each.startswith("req_") for each in ids)
    assert answers[0].parse()._request_id == ids[0]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("unicorn")
    assert caught.value.request_id.startswith("req_")


@pytest.mark.parametrize("path", ["/healthz", "/", "/v1/chat/completions", "/v1/models"])
def test_a_sane_id_of_the_client_is_kept(url, path):
    assert ask(url, "GET", path, X_Request_Id="trace-7:a.b_c")[1]["x-request-id"] == "trace-7:a.b_c"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "\xe9", "<script>"])
def test_any_other_is_replaced(url, given):
    assert ask(url, "GET", "/healthz", X_Request_Id=given)[1]["x-request-id"].startswith("req_")


def test_triton_is_told_it_too():
    calls: list[Call] = []

    def noting(call: Call) -> Iterator[Step | Picture]:
        calls.append(call)
        return four_steps(call)

    with fake_triton(noting) as triton, running_front(triton) as url:
        ask(url, "POST", "/v1/images/generations", {"prompt": "star", "n": 2}, X_Request_Id="mine")
    assert [call.id for call in calls] == ["mine", "mine"]


def test_an_error_in_a_stream_names_it(client):
    with pytest.raises(openai.APIError, match="it broke") as caught:
        list(client.images.generate(prompt="fails later", stream=True, extra_headers={"x-request-id": "mine"}))
    assert caught.value.body["request_id"] == "mine"


def test_a_front_that_fails_answers_with_an_id_too(url, monkeypatch):
    monkeypatch.setattr("clients.openai_api.models.Json", None)
    status, headers, content = ask(url, "GET", "/healthz")
    assert status == 500
    assert json.loads(content)["error"]["message"] == "this front failed: TypeError"
    assert headers["x-request-id"].startswith("req_")
    assert headers["x-content-type-options"] == "nosniff"


# The asynchronous client


def test_the_asynchronous_client_does_the_same(url):
    async def scenario() -> tuple[ImagesResponse, list[Any], Model]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            answer = await client.images.generate(prompt="star", n=2, extra_body={"seed": 4})
            stream = await client.images.generate(prompt="star", stream=True, partial_images=1)
            events = [event async for event in stream]
            model = await client.models.retrieve("swan")
            with pytest.raises(openai.BadRequestError, match="height is 1024"):
                await client.images.generate(prompt="small", size="1024x1024")
            return answer, events, model

    answer, events, model = asyncio.run(scenario())
    assert [each.report["received"]["seed"] for each in answer.data] == [4, 5]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))), PICTURE[0])
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "completed"]
    strictly(ImagesResponse, answer)
    strictly(Model, model)


def test_without_a_ready_model_it_is_told_to_come_back():
    with fake_triton(models=()) as triton, running_front(triton, default_model="emoji") as url:
        for status, headers, content in (
            ask(url, "GET", "/healthz"),
            ask(url, "GET", "/v1/models/emoji"),
            ask(url, "POST", "/v1/images/generations", {"prompt": "star"}),
        ):
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(content)["error"]["message"] == f"no model is ready at {triton}"
        status, _, content = ask(url, "GET", "/v1/models")
        assert (status, json.loads(content)) == (200, {"object": "list", "data": []})


def test_a_default_model_that_is_not_ready_is_not_replaced():
    with fake_triton(models=("swan",)) as triton, running_front(triton, default_model="emoji") as url:
        status, _, answer = generate(url)
    assert (status, answer["error"]["message"]) == (404, "model is emoji, must be one that is ready: swan")


# A model whose process has died


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_waits_for_a_model_that_has_fallen_silent(monkeypatch, stream):
    ended = threading.Event()

    def falls_silent(call: Call) -> Iterator[Step]:
        yield Step(1, 4)
        ended.wait(30)

    monkeypatch.setitem(AsyncClient.__init__.__kwdefaults__, "idle_timeout_s", 0.3)
    began = time.monotonic()
    with (
        fake_triton(falls_silent) as triton,
        running_front(triton) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIError, match=r"emoji_stream has not been heard from for 0\.3 s") as caught,
    ):
        list(client.images.generate(prompt="star", stream=stream))
    ended.set()
    assert caught.value.code == "unavailable"
    assert time.monotonic() - began < 20, "the model is silent for 30 s"


# TLS between the front and Triton


def test_a_triton_with_tls_is_reached_by_its_certificate():
    key, certificate = (ROOT / f"tests/support/tls/{name}.pem" for name in ("key", "certificate"))
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    with (
        fake_triton(credentials=credentials, host="localhost") as triton,
        running_front(triton, root_certificates=certificate) as url,
    ):
        assert json.loads(ask(url, "GET", "/healthz")[2]) == {"models": ["emoji"]}
        assert generate(url)[0] == 200
