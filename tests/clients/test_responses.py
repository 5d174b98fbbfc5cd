"""OpenAI's responses through the front to a pretended Triton, by OpenAI's client for Python."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from jsonschema import Draft202012Validator
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import (
    ResponseCreateParamsBase,
    ResponseCreateParamsNonStreaming,
)
from openai.types.responses.tool_param import ImageGeneration
from PIL import Image
from pydantic import TypeAdapter

from clients.openai_api import create_app
from clients.openai_api.responses_fields import ResponsesRequest
from plugin.ops.server import Server
from tests.support.edits import ONE, TWO, Calls, data_url, mask_of, pixels
from tests.support.fake_triton import PICTURE
from tests.support.front import running_front
from tests.support.other_clients_front import client_of, late_failure, sent

TOOL: dict[str, Any] = {"type": "image_generation"}
FUNCTION: dict[str, Any] = {"type": "function", "name": "sum", "parameters": {}, "strict": False}
EDIT: list[Any] = [
    {"role": "user", "content": "a tree"},
    {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "AAAA"},
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "star"},
            {"type": "input_image", "image_url": data_url(ONE), "detail": "auto"},
            {"type": "input_image", "image_url": data_url(TWO)},
        ],
    },
]
EVENTS = TypeAdapter(ResponseStreamEvent)
BEGUN = [
    *("response.created", "response.in_progress", "response.output_item.added"),
    *("response.image_generation_call.in_progress", "response.image_generation_call.generating"),
]
DONE = ["response.image_generation_call.completed", "response.output_item.done", "response.completed"]


@pytest.fixture(scope="module")
def calls() -> Calls:
    return Calls()


@pytest.fixture(scope="module")
def client(calls: Calls) -> Iterator[openai.OpenAI]:
    with client_of(calls, ("emoji", "swan"), aliases={"gpt-5": "emoji"}) as client:
        yield client


def picture(base64_text: str) -> np.ndarray:
    return pixels(base64.b64decode(base64_text))


# What is asked for


def test_every_parameter_of_the_pinned_client_is_a_field():
    refused = {"previous_response_id", "conversation"}  # before the fields are read
    for kind in (ResponseCreateParamsBase, ResponseCreateParamsNonStreaming):
        assert set(kind.__annotations__) - refused <= set(ResponsesRequest.model_fields)


def test_every_parameter_of_the_pinned_clients_tool_is_a_field():
    assert set(ImageGeneration.__annotations__) - {"type", "input_image_mask"} <= set(ResponsesRequest.model_fields)


@pytest.mark.parametrize("given", ["star", [{"role": "user", "content": "star", "type": "message"}]])
@pytest.mark.parametrize(
    "tools", [{}, {"tools": []}, {"tools": [TOOL]}, {"tools": [FUNCTION, TOOL], "tool_choice": "required"}]
)
def test_the_last_message_of_the_user_is_the_prompt(client, calls, given, tools):
    client.responses.create(model="emoji", input=given, **tools)
    assert calls.last == {"prompt": "star", "num_frames": 1}


def test_its_pictures_begin_an_edit(client, calls):
    answer = client.responses.create(model="emoji", input=EDIT, tools=[TOOL])
    assert calls.last == {"prompt": "star", "input_image": [ONE, TWO], "num_frames": 1}
    assert answer.output[0].action == "edit"


def test_the_tool_says_how_the_picture_is_made(client, calls):
    tool = {
        **TOOL,
        **{"size": "64x96", "output_format": "webp", "output_compression": 80, "quality": "low", "background": "auto"},
        **{"moderation": "low", "action": "edit", "input_fidelity": "high", "model": "swan", "seed": 7},
        "input_image_mask": {"image_url": data_url(mask_of())},
    }
    answer = client.responses.create(model="gpt-5", input=EDIT, tools=[tool], tool_choice={"type": "image_generation"})
    assert calls.made[-1].model == "swan_stream"
    assert np.array_equal(pixels(calls.last.pop("mask_image")[0]), np.repeat([[255] * 3 + [0] * 3], 4, axis=0))
    asked = {"prompt": "star", "input_image": [ONE, TWO], "num_frames": 1, "width": 64, "height": 96, "seed": 7}
    assert calls.last == asked
    assert Image.open(io.BytesIO(base64.b64decode(answer.output[0].result))).format == "WEBP"
    assert answer.model == "gpt-5"


def test_inputs_of_the_model_are_further_fields(client, calls):
    client.responses.create(model="emoji", input="star", extra_body={"seed": 7, "cache_preset": "paper"})
    assert calls.last == {"prompt": "star", "num_frames": 1, "seed": 7, "cache_preset": "paper"}


def test_what_has_no_meaning_here_is_accepted(client, calls):
    client.responses.create(
        model="emoji",
        input="star",
        include=["reasoning.encrypted_content"],
        instructions="You draw.",
        metadata={"a": "b"},
        reasoning={"effort": "low"},
        store=True,
        background=False,
        temperature=0.7,
        text={"format": {"type": "text"}},
        truncation="auto",
    )
    assert calls.last == {"prompt": "star", "num_frames": 1}


@pytest.mark.parametrize(
    ("fields", "sentence", "param"),
    [
        ({}, "the body must be a JSON object", None),
        ({"input": []}, "input is [], must be a list of messages, one of them of role user", "input"),
        ({"input": [{"role": "user", "content": 7}]}, "must have parts of type text or picture alone", "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
            "must have an image_url: this front keeps no files",
            "input",
        ),
        ({"previous_response_id": "resp_1"}, "must be left out: this front keeps no responses", "previous_response_id"),
        ({"conversation": "conv_1"}, "must be left out: this front keeps no conversations", "conversation"),
        ({"background": True}, "background is given, must be left out: this front keeps no responses", "background"),
        ({"tools": [FUNCTION]}, "must have one of type image_generation, or be left out: no model here calls", "tools"),
        ({"tools": "all"}, 'tools is "all", must have one of type image_generation', "tools"),
        ({"tools": [TOOL], "tool_choice": "none"}, "no picture is asked for", "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "sum"}}, "no picture is asked", "tool_choice"),
        ({"tools": [{**TOOL, "output_format": "gif"}]}, "output_format is \"gif\", must be 'png'", "output_format"),
        ({"tools": [{**TOOL, "wings": 2}]}, "wings is not a field, must be one of: ", "wings"),
        ({"tools": [{**TOOL, "input_image_mask": {"file_id": "file-1"}}]}, "this front keeps no files", "mask"),
        ({"tools": [{**TOOL, "action": "edit"}]}, "action is edit, must be auto, or the last message of the", "action"),
        ({"input": EDIT, "tools": [{**TOOL, "action": "generate"}]}, "of the user have no picture", "action"),
        ({"prompt": {"id": "pmpt_1"}}, 'prompt is {"id": "pmpt_1"}, must be a valid string', "prompt"),
        ({"prompt": "star"}, "prompt is given beside input, must be left out", "input"),
        ({"input": "small", "tools": [{**TOOL, "size": "64x1024"}]}, "height is 1024, must be a multiple", "size"),
        ({"model": "unicorn"}, "model is unicorn, must be one that is ready: emoji, swan", "model"),
    ],
)
def test_what_is_wrong_is_said(client, fields, sentence, param):
    status, _, answer = sent(client, "/v1/responses", ({"input": "star"} if fields else {}) | fields)
    assert status == (404 if param == "model" else 400)
    assert sentence in answer["error"]["message"]
    assert (answer["error"]["param"], answer["error"]["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize("call", [lambda c: c.responses.retrieve("resp_1"), lambda c: c.responses.cancel("resp_1")])
def test_no_response_is_kept(client, call):
    with pytest.raises(
        openai.NotFoundError, match="nothing of a response is kept, POST /v1/responses answers with all"
    ):
        call(client)


def test_openapi_tells_what_is_taken(client):
    """Each body that the schema takes is served, each that it does not take is refused."""
    told = create_app().openapi()["paths"]["/v1/responses"]["post"]["requestBody"]["content"]
    schema = told["application/json"]["schema"]
    for fields in (
        {},
        {"input": EDIT},
        {"tools": [TOOL]},
        {"tools": 7},
        {"seed": "a"},
        {"action": "paint"},
        {"wings": 2},
    ):
        body = {"input": "star", **fields}
        status, _, _ = sent(client, "/v1/responses", body)
        assert status == (200 if Draft202012Validator(schema).is_valid(body) else 400), fields


# What is answered


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL]}, {"tools": [FUNCTION, {**TOOL, "size": "auto"}]}])
def test_the_answer_is_of_the_clients_type_and_has_the_picture(client, fields):
    answer = client.responses.create(model="gpt-5", input="star", **fields)
    Response.model_validate(answer.to_dict(), strict=True)
    (call,) = answer.output
    assert np.array_equal(picture(call.result), PICTURE[0])
    assert (call.type, call.status, call.size, call.action) == ("image_generation_call", "completed", "6x4", "generate")
    assert call.report["received"]["prompt"] == "star"
    assert (answer.status, answer.model, answer.output_text) == ("completed", "gpt-5", "")
    assert answer.usage.total_tokens == 0


def test_several_pictures_are_several_calls(client):
    answer = client.responses.create(model="emoji", input="star", extra_body={"n": 3, "seed": 40})
    Response.model_validate(answer.to_dict(), strict=True)
    assert [call.report["received"]["seed"] for call in answer.output] == [40, 41, 42]
    assert len({call.id for call in answer.output}) == 3


def test_events_are_of_the_clients_types_and_in_order(client):
    tool = {**TOOL, "partial_images": 2}
    events = list(client.responses.create(model="emoji", input="star", tools=[tool], stream=True))
    for event in events:
        EVENTS.validate_python(event.to_dict(), strict=True)
    partial = ["response.image_generation_call.partial_image"] * 2
    assert [event.type for event in events] == [*BEGUN, *partial, *DONE]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    previews = events[len(BEGUN) : len(BEGUN) + 2]
    assert [event.partial_image_index for event in previews] == [0, 1]
    assert [picture(event.partial_image_b64)[0, 0, 0] for event in previews] == [2, 3]
    *_, item, completed = events
    assert item.item == completed.response.output[0]
    assert np.array_equal(picture(item.item.result), PICTURE[0])
    ids = {event.item_id for event in events if hasattr(event, "item_id")} | {item.item.id}
    assert len(ids) == 1


def test_without_partial_images_there_are_none(client, calls):
    events = list(client.responses.create(model="emoji", input="star", stream=True))
    assert [event.type for event in events] == [*BEGUN, *DONE]
    assert "preview" not in calls.last


def test_the_clients_own_gathering_of_a_stream_ends(client):
    with client.responses.stream(model="emoji", input="star", tools=[TOOL]) as stream:
        response = stream.get_final_response()
    assert np.array_equal(picture(response.output[0].result), PICTURE[0])


def test_refusals_have_their_status_also_with_stream(client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="height is 1024"):
            client.responses.create(model="emoji", input="small", stream=stream)


def test_a_late_error_is_a_failed_response_with_the_models_sentence():
    with late_failure() as client:
        *begun, last = client.responses.create(model="emoji", input="star", stream=True)
    assert [event.type for event in begun] == BEGUN
    EVENTS.validate_python(last.to_dict(), strict=True)
    assert (last.type, last.response.status, last.response.error.message) == ("response.failed", "failed", "it broke")
    assert last.response.error.request_id.startswith("req_")


def test_a_real_triton_answers(echo: Server):
    with (
        running_front(echo.grpc_url, default_model="echo") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.responses.create(model="echo", input=EDIT, tools=[TOOL])
        tool = {**TOOL, "partial_images": 2}
        events = list(client.responses.create(model="echo", input="star", tools=[tool], stream=True))
    received = answer.output[0].report["received"]
    assert received["input_image"][2] == [ONE.hex(), TWO.hex()]
    assert picture(answer.output[0].result).shape == (4, 6, 3)
    assert [event.type for event in events].count("response.image_generation_call.partial_image") == 2
    assert events[-1].response.status == "completed"
