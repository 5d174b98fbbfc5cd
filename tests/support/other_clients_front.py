"""Fronts of pretended models, and OpenAI's client of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import openai

from tests.support.edits import ask
from tests.support.fake_triton import Behaviour, Call, Failure, Step, fake_triton
from tests.support.front import running_front
from tests.support.other_clients import SETTINGS, Emoji

_LATER_S = 2.2  # a front waits 2 s for a refusal


@contextmanager
def client_of(behaviour: Behaviour, models: Sequence[str] = ("emoji",), **settings: Any) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a front with these settings, for models that behave so."""
    with (
        fake_triton(behaviour, models) as triton,
        running_front(triton, **settings) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@contextmanager
def front_of_emoji() -> Iterator[tuple[str, Emoji]]:
    """The URL of a front with the settings for other programs, and the model behind it."""
    emoji = Emoji()
    with fake_triton(emoji) as triton, running_front(triton, **SETTINGS) as url:
        yield url, emoji


@contextmanager
def late_failure() -> Iterator[openai.OpenAI]:
    """The client of a model that fails when its stream has begun, later than a front waits for refusals."""

    def fails(_: Call) -> Iterator[Step | Failure]:
        yield Step(1, 4)
        time.sleep(_LATER_S)
        yield Failure("INTERNAL", "it broke")

    with client_of(fails) as client:
        yield client


def url_of(client: openai.OpenAI) -> str:
    """The front's, without /v1."""
    return str(client.base_url).removesuffix("/v1/")


def sent(client: openai.OpenAI, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of a body as it is; what is no bytes becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    return ask(url_of(client), content, "application/json", path)
