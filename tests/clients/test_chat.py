"""OpenAI's chat through the front to a pretended Triton, by OpenAI's client for Python."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from jsonschema import Draft202012Validator
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase, CompletionCreateParamsNonStreaming
from PIL import Image

from clients.openai_api import MAX_BODY_BYTES, MAX_EDIT_BYTES, create_app
from clients.openai_api.chat_fields import ChatRequest
from plugin.ops.server import Server
from tests.support.edits import ONE, TWO, Calls, data_url, mask_of
from tests.support.fake_triton import PICTURE
from tests.support.front import running_front
from tests.support.other_clients_front import client_of, late_failure, sent

PATH = "/v1/chat/completions"
STAR: list[Any] = [{"role": "user", "content": "star"}]
ALL_OF_IT: list[Any] = [
    {"role": "system", "content": "You draw."},
    {"role": "user", "content": "a tree"},
    {"role": "assistant", "content": "", "images": [{"type": "image_url", "image_url": {"url": data_url(TWO)}}]},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "star,"},
            {"type": "image_url", "image_url": {"url": data_url(ONE), "detail": "auto"}},
            {"type": "text", "text": "3d"},
        ],
    },
    {"role": "assistant", "content": "Let me see."},
]


@pytest.fixture(scope="module")
def calls() -> Calls:
    return Calls()


@pytest.fixture(scope="module")
def client(calls: Calls) -> Iterator[openai.OpenAI]:
    with client_of(calls, aliases={"gpt-5": "emoji"}) as client:
        yield client


def ask_chat(client: openai.OpenAI, **fields: Any) -> Any:
    """Status and JSON of a request as it is."""
    return sent(client, PATH, fields)[::2]


def pictures(message: Any) -> list[np.ndarray]:
    """The pictures of a message or of a delta, as OpenRouter's documentation reads them."""
    urls = [each["image_url"]["url"] for each in message.images]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]


# What is asked for


def test_every_parameter_of_the_pinned_client_is_a_field():
    for kind in (CompletionCreateParamsBase, CompletionCreateParamsNonStreaming):
        assert set(kind.__annotations__) <= set(ChatRequest.model_fields)


def test_the_last_message_of_the_user_is_the_prompt(client, calls):
    client.chat.completions.create(model="emoji", messages=STAR)
    assert calls.last == {"prompt": "star", "num_frames": 1}


def test_its_pictures_begin_an_edit(client, calls):
    client.chat.completions.create(model="emoji", messages=ALL_OF_IT)
    assert calls.last == {"prompt": "star,\n3d", "input_image": [ONE], "num_frames": 1}


def test_inputs_of_the_model_are_further_fields(client, calls):
    own = {"strength": 0.5, "cache_preset": "paper", "size": "64x96", "mask": data_url(mask_of())}
    client.chat.completions.create(model="gpt-5", messages=ALL_OF_IT, seed=7, extra_body=own)
    assert calls.last.pop("mask_image")
    asked = {"prompt": "star,\n3d", "input_image": [ONE], "num_frames": 1, "seed": 7}
    assert calls.last == {**asked, "strength": 0.5, "cache_preset": "paper", "width": 64, "height": 96}


def test_what_has_no_meaning_here_is_accepted(client, calls):
    client.chat.completions.create(
        model="emoji",
        messages=STAR,
        temperature=0.7,
        max_completion_tokens=100,
        response_format={"type": "text"},
        stop=["."],
        tools=[{"type": "function", "function": {"name": "sum"}}],
        tool_choice="auto",
        user="someone",
    )
    assert calls.last == {"prompt": "star", "num_frames": 1}


@pytest.mark.parametrize(
    ("fields", "sentence", "param"),
    [
        ({}, "the body must be a JSON object", None),
        ({"messages": []}, "messages is [], must be a list of messages, one of them of role user", "messages"),
        ({"messages": "star"}, 'messages is "star", must be a list of messages', "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "one of them of role user", "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "must have parts of type text or picture alone", "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "must have parts of type text or picture alone",
            "messages",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "star.png"}}]}]},
            "must be a PNG, JPEG or WebP file",
            "messages",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": data_url(ONE)}] * 17}]},
            "must have at most 16 pictures in the last message",
            "messages",
        ),
        ({"messages": STAR, "prompt": "star"}, "prompt is given beside messages, must be left out", "messages"),
        ({"messages": STAR, "num_frames": 9}, "num_frames is 9, must be 1: the answer is a picture", "num_frames"),
        ({"messages": STAR, "modalities": ["text"]}, 'modalities is ["text"], must have image', "modalities"),
        ({"messages": STAR, "tool_choice": "required"}, "no model here calls functions", "tool_choice"),
        ({"messages": STAR, "n": 2, "stream": True}, "n is 2, must be 1 with stream", "n"),
        ({"messages": STAR, "mask": data_url(mask_of())}, "image is missing, must be 1 to 16 pictures", "messages"),
        (
            {"messages": STAR, "cache_intervall": 3},
            "cache_intervall is not a field, must be one of: ",
            "cache_intervall",
        ),
        ({"messages": [{"role": "user", "content": "small"}], "size": "64x1024"}, "height is 1024, must be", "size"),
        ({"messages": [{"role": "user", "content": "torn"}]}, "input_image cannot be read", "messages"),
    ],
)
def test_what_is_wrong_is_said(client, fields, sentence, param):
    status, answer = ask_chat(client, **fields)
    assert status == 400
    assert sentence in answer["error"]["message"]
    assert (answer["error"]["param"], answer["error"]["type"]) == (param, "invalid_request_error")


def test_a_body_has_room_for_pictures_and_no_more(client):
    padding = "x" * (MAX_BODY_BYTES + 1)
    assert ask_chat(client, messages=[{"role": "system", "content": padding}, *STAR])[0] == 200
    status, _, _ = sent(client, PATH, b" " * (MAX_EDIT_BYTES + 1))
    assert status == 413


def test_an_address_is_fetched_from_nowhere(client):
    part = {"type": "image_url", "image_url": {"url": "https://example.com/star.png"}}
    status, answer = ask_chat(client, messages=[{"role": "user", "content": [part]}])
    assert status == 400
    assert "this front fetches nothing from there" in answer["error"]["message"]


def test_openapi_tells_what_is_taken(client):
    """Each body that the schema takes is served, each that it does not take is refused."""
    told = create_app().openapi()["paths"][PATH]["post"]["requestBody"]["content"]
    schema = told["application/json"]["schema"]
    assert schema["properties"].keys() == ChatRequest.model_fields.keys()
    for fields in ({}, {"seed": "a"}, {"n": 11}, {"n": 3}, {"seed": 7}, {"temperature": 2}, {"wings": 2}):
        status, _ = ask_chat(client, messages=STAR, **fields)
        assert status == (200 if Draft202012Validator(schema).is_valid({"messages": STAR, **fields}) else 400), fields
    assert not Draft202012Validator(schema).is_valid({"messages": "star"})


@pytest.mark.parametrize("path", [PATH, "/v1/responses"])
def test_the_key_is_asked_for_before_the_body_is_read(path):
    with client_of(Calls(), api_key="secret") as client:
        status, _, answer = sent(client, path, b"no JSON")
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


# What is answered


def test_the_answer_is_of_the_clients_type_and_has_the_picture(client):
    answer = client.chat.completions.create(model="gpt-5", messages=STAR)
    ChatCompletion.model_validate(answer.to_dict(), strict=True)
    assert answer.model == "gpt-5"
    (choice,) = answer.choices
    (picture,) = pictures(choice.message)
    assert np.array_equal(picture, PICTURE[0])
    assert (choice.message.content, choice.finish_reason) == ("", "stop")
    assert choice.report["received"]["prompt"] == "star"
    assert answer.usage.total_tokens == 0


def test_several_pictures_are_several_choices(client):
    answer = client.chat.completions.create(model="emoji", messages=STAR, n=3, seed=40)
    ChatCompletion.model_validate(answer.to_dict(), strict=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.report["received"]["seed"] for choice in answer.choices] == [40, 41, 42]


def test_a_name_that_is_left_out_is_the_models(client):
    answer = client.chat.completions.create(model="", messages=STAR)
    assert answer.model == "emoji"


def test_another_format(client):
    answer = client.chat.completions.create(model="emoji", messages=STAR, extra_body={"output_format": "webp"})
    url = answer.choices[0].message.images[0]["image_url"]["url"]
    start, _, file = url.partition(",")
    assert start == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(file))).format == "WEBP"


def test_a_stream_has_the_picture_in_a_delta(client):
    chunks = list(client.chat.completions.create(model="emoji", messages=STAR, stream=True))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.to_dict(), strict=True)
    first, second, last = [chunk.choices[0] for chunk in chunks]
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert np.array_equal(pictures(second.delta)[0], PICTURE[0])
    assert last.finish_reason == "stop"
    assert last.report["received"]["prompt"] == "star"
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_comes_last_where_it_is_asked_for(client):
    *_, last = client.chat.completions.create(
        model="emoji", messages=STAR, stream=True, stream_options={"include_usage": True}
    )
    ChatCompletionChunk.model_validate(last.to_dict(), strict=True)
    assert (last.choices, last.usage.total_tokens) == ([], 0)


def test_the_clients_own_gathering_of_a_stream_ends(client):
    with client.chat.completions.stream(model="emoji", messages=STAR) as stream:
        assert stream.get_final_completion().choices[0].finish_reason == "stop"


def test_refusals_have_their_status_also_with_stream(client):
    messages: list[Any] = [{"role": "user", "content": "small"}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="height is 1024") as caught:
            client.chat.completions.create(model="emoji", messages=messages, stream=stream)
        assert caught.value.code == "invalid_value"


def test_a_full_queue_says_when_to_come_back(client):
    status, headers, _ = sent(client, PATH, {"messages": [{"role": "user", "content": "full"}]})
    assert status == 503
    assert int(headers["retry-after-ms"]) >= 400


def test_a_late_error_ends_the_stream_with_the_models_sentence():
    with late_failure() as client:
        stream = client.chat.completions.create(model="emoji", messages=STAR, stream=True)
        with pytest.raises(openai.APIError, match="it broke") as caught:
            list(stream)
        assert caught.value.body["request_id"].startswith("req_")


def test_the_asynchronous_client_does_the_same(client):
    async def scenario() -> Any:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as other:
            return await other.chat.completions.create(model="emoji", messages=STAR)

    assert np.array_equal(pictures(asyncio.run(scenario()).choices[0].message)[0], PICTURE[0])


def test_a_real_triton_answers(echo: Server):
    with (
        running_front(echo.grpc_url, default_model="echo") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(model="echo", messages=ALL_OF_IT, seed=7)
        *_, last = client.chat.completions.create(model="echo", messages=STAR, stream=True)
    received = answer.choices[0].report["received"]
    assert received["input_image"][2] == [ONE.hex()]
    assert received["prompt"][2] == "star,\n3d"
    assert pictures(answer.choices[0].message)[0].shape == (4, 6, 3)
    assert last.choices[0].finish_reason == "stop"
