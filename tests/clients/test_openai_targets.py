"""What names stand for: models, and a size in place of one that the model refuses."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from starlette.types import ASGIApp

import plugin.cli.front
from clients.openai_api import create_app
from clients.openai_api.targets import Target
from tests.support.commands import run
from tests.support.edits import ONE, pixels
from tests.support.fake_triton import Call, Failure, Picture, Step, four_steps
from tests.support.other_clients import Emoji
from tests.support.other_clients_front import client_of


class Asked(Emoji):
    """The emoji model's limits; `asked` has refused requests too."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []

    def __call__(self, call: Call) -> Iterator[Step | Picture | Failure]:
        self.asked.append(call.fields)
        if call.fields["prompt"] == "memory":
            yield Failure("INVALID_ARG", "height, width and cache_order make a request of 9 MiB, must be less")
        elif call.fields["prompt"] == "order":
            yield Failure("INVALID_ARG", "cache_order is 9, must be from 0 to 8")
        else:
            yield from super().__call__(call)


@pytest.fixture
def emoji() -> Asked:
    return Asked()


@pytest.fixture
def client(emoji: Asked) -> Iterator[openai.OpenAI]:
    with client_of(emoji, aliases={"gpt-image-2": "emoji:64x96", "plain": "emoji"}) as client:
        yield client


def sizes(emoji: Asked) -> list[tuple[int | None, int | None]]:
    return [(fields.get("width"), fields.get("height")) for fields in emoji.asked]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("emoji", Target("emoji")), ("emoji:64x96", Target("emoji", (64, 96))), ("a/b-1.x", Target("a/b-1.x"))],
)
def test_a_setting_is_a_model_and_perhaps_a_size(text, expected):
    assert Target.of("alias a", text) == expected


@pytest.mark.parametrize("text", ["", "emoji:", "emoji:64", "emoji:64x", "emoji:64x64x64", ":64x64", "emoji:axb"])
def test_any_other_is_refused_before_the_front_starts(text):
    sentence = "must be MODEL or MODEL:WIDTHxHEIGHT, as emoji:64x64"
    with pytest.raises(ValueError, match=f"alias a is {text}, {sentence}"):
        create_app(aliases={"a": text})
    with pytest.raises(ValueError, match=f"default_model is {text}, {sentence}"):
        create_app(default_model=text)


def test_a_size_that_the_model_refuses_is_replaced(client, emoji):
    answer = client.images.generate(model="gpt-image-2", prompt="star", size="1024x1024", extra_body={"seed": 7})
    assert sizes(emoji) == [(1024, 1024), (64, 96)]
    refused, made = emoji.asked
    assert refused | {"width": 64, "height": 96} == made, "and nothing else is"
    assert answer.data[0].report["received"]["width"] == 64


def test_one_that_it_makes_is_not(client, emoji):
    client.images.generate(model="gpt-image-2", prompt="star", size="128x32")
    assert sizes(emoji) == [(128, 32)]


def test_nor_is_one_that_is_left_to_the_model(client, emoji):
    client.images.generate(model="gpt-image-2", prompt="star", size="auto")
    assert sizes(emoji) == [(None, None)]
    with pytest.raises(openai.BadRequestError, match="height, width and cache_order make a request of 9 MiB"):
        client.images.generate(model="gpt-image-2", prompt="memory")


@pytest.mark.parametrize("model", ["emoji", "plain", ""])
def test_names_without_a_size_have_the_models_refusal(client, emoji, model):
    with pytest.raises(openai.BadRequestError, match="height is 1024, must be a multiple of 8 from 32 to 128"):
        client.images.generate(model=model, prompt="star", size="1024x1024")
    assert len(emoji.asked) == 1


def test_other_refusals_are_handed_on_at_once(client, emoji):
    with pytest.raises(openai.BadRequestError, match="cache_order is 9"):
        client.images.generate(model="gpt-image-2", prompt="order", size="64x64")
    assert len(emoji.asked) == 1


def test_a_replacement_that_is_refused_too_is_told():
    with (
        client_of(emoji := Asked(), aliases={"gpt-image-2": "emoji:512x512"}) as client,
        pytest.raises(openai.BadRequestError, match="height is 512"),
    ):
        client.images.generate(model="gpt-image-2", prompt="star", size="1024x1024")
    assert sizes(emoji) == [(1024, 1024), (512, 512)]


def test_each_of_several_pictures_and_edits_and_streams(client, emoji):
    answer = client.images.generate(model="gpt-image-2", prompt="star", size="1024x1024", n=2)
    assert len(answer.data) == 2
    edited = client.images.edit(model="gpt-image-2", prompt="star", image=ONE, size="1024x1024")
    assert edited.data[0].report["received"]["height"] == 96
    *_, last = client.images.generate(
        model="gpt-image-2", prompt="star", size="1024x1024", stream=True, partial_images=1
    )
    assert pixels(base64.b64decode(last.b64_json)).shape == (4, 6, 3)
    assert sizes(emoji).count((64, 96)) == 4


@pytest.mark.parametrize("default", ["emoji:64x96", "gpt-image-2", "plain:64x96"])
def test_requests_without_a_name_have_the_defaults_size(default):
    aliases = {"gpt-image-2": "emoji:64x96", "plain": "emoji:32x32"}
    emoji = Asked()
    with client_of(emoji, ("swan", "emoji"), default_model=default, aliases=aliases) as client:
        client.images.generate(prompt="star", size="1024x1024")
        assert [model.id for model in client.models.list()] == ["emoji", "swan"], "the default one first"
    assert sizes(emoji)[-1] == (64, 96)


# DALL-E's own default


@pytest.mark.parametrize(
    ("model", "asked", "as_url"),
    [("dall-e-3", None, True), ("dall-e-3", "b64_json", False), ("emoji", None, False), ("emoji", "url", True)],
)
def test_a_name_of_dall_e_has_urls_by_default(model, asked, as_url):
    with client_of(four_steps, aliases={"dall-e-3": "emoji"}) as client:
        (datum,) = client.images.generate(model=model, prompt="star", response_format=asked).data
        (edited,) = client.images.edit(model=model, prompt="star", image=ONE, response_format=asked).data
    for each in (datum, edited):
        assert (each.url is not None, each.b64_json is not None) == (as_url, not as_url)
        file = each.url.partition(",")[2] if as_url else each.b64_json
        assert np.asarray(pixels(base64.b64decode(file))).shape == (4, 6, 3)


# The command


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command would serve: application, host and port."""
    calls: list[Any] = []
    monkeypatch.setattr(plugin.cli.front, "_serve", lambda *arguments: calls.extend(arguments))
    return calls


def middleware(app: ASGIApp) -> list[Any]:
    return [each.kwargs.get("allow_origins") for each in app.user_middleware]  # type: ignore[attr-defined]


def test_the_command_takes_sizes_and_origins(served):
    origins = ["--cors-origin", "https://a.example.com", "--cors-origin", "http://localhost:3000"]
    code, output = run("front", "--model", "emoji:64x64", "--alias", "gpt-image-2=emoji:64x96", *origins)
    assert code == 0
    front = served[0].state.front
    assert (front.default_model, front.aliases) == ("emoji:64x64", {"gpt-image-2": "emoji:64x96"})
    assert middleware(served[0])[0] == ["https://a.example.com", "http://localhost:3000"]
    assert "note:" not in output


def test_all_origins_without_a_key_are_noted(served, monkeypatch):
    code, output = run("front", "--cors-origin", "*")
    assert code == 0
    assert "every page that is open in a browser here can use it; set TAYLORSEER_API_KEY" in " ".join(output.split())
    monkeypatch.setenv("TAYLORSEER_API_KEY", "secret")
    assert "note:" not in run("front", "--cors-origin", "*")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--alias", "a=emoji:big"], "alias a is emoji:big, must be MODEL or MODEL:WIDTHxHEIGHT"),
        (["--model", "emoji:big"], "default_model is emoji:big, must be MODEL or MODEL:WIDTHxHEIGHT"),
        (["--cors-origin", "example.com"], "cors_origin is example.com, must be * or scheme, host and port"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_starts(served, arguments, sentence):
    code, output = run("front", *arguments)
    assert code == 1
    assert sentence in " ".join(output.split())
    assert not served
