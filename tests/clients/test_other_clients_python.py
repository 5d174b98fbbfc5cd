"""LangChain, pydantic-ai, webuiapi and LiteLLM, in environments of their own, get pictures from the front."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.documents import blocks_of
from tests.support.edits import ONE, pixels
from tests.support.fake_triton import PICTURE
from tests.support.other_clients import PROMPT, Emoji
from tests.support.other_clients_front import front_of_emoji
from tests.support.other_clients_programs import PROGRAMS
from tests.support.paths import ROOT
from tests.support.wheels import Environment, environment, run

pytestmark = pytest.mark.network

PACKAGES = ("langchain-openai==1.7.4", "pydantic-ai-slim[openai]==2.68.0", "webuiapi==0.9.17")
LITELLM = ("litellm==1.110.2",)  # it pins packages that the others do not take
# LiteLLM reads its prices from the network unless it is told not to.
ENVIRON = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1", "PATH": ""}
# Program -> for each of its pictures in turn what the model must have been asked for, beside the prompt
ASKED: dict[str, list[dict[str, Any]]] = {
    "langchain": [{}, {"preview": True}, {"input_image": [ONE]}, {}],
    "pydantic_ai": [{}, {"preview": None}, {"input_image": [ONE]}, {}, {"input_image": [ONE]}],
    "webuiapi": [
        {"seed": 7, "num_inference_steps": 20, "guidance_scale": 7.0, "width": 64, "height": 64},
        {"strength": 0.5, "width": 64},
    ],
    "litellm": [{}, {"input_image": [ONE]}, {}, {}, {}],
}


@dataclass(frozen=True)
class Ready:
    """What programs run in, and what they reach."""

    of_all: Environment
    of_litellm: Environment
    url: str
    emoji: Emoji


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    folder = tmp_path_factory.mktemp("clients")
    ours, litellm = environment(folder / "ours"), environment(folder / "litellm")
    ours.install(*PACKAGES)
    litellm.install(*LITELLM)
    with front_of_emoji() as (url, emoji):
        yield Ready(ours, litellm, url, emoji)


def told_by(ready: Ready, name: str, folder: Path) -> Any:
    """The JSON that a program writes last."""
    file = folder / f"run_{name}.py"  # not the library's own name
    file.write_text(PROGRAMS[name])
    python = (ready.of_litellm if name == "litellm" else ready.of_all).python
    sent = base64.b64encode(ONE).decode()
    written = run([python, "-W", "ignore", file, ready.url, sent, PROMPT], timeout=180, env=ENVIRON)
    return json.loads(written.splitlines()[-1])


@pytest.mark.parametrize("name", ASKED)
def test_each_call_gets_a_picture(ready, name, tmp_path):
    before = len(ready.emoji.made)
    pictures = told_by(ready, name, tmp_path)
    for picture in pictures:
        assert np.array_equal(pixels(base64.b64decode(picture)), PICTURE[0])
    made = [call.fields for call in ready.emoji.made[before:] if call.fields["prompt"] == PROMPT]
    expected = [{"prompt": PROMPT, **asked} for asked in ASKED[name]]
    assert len(pictures) == len(expected)
    assert [{key: fields.get(key) for key in asked} for fields, asked in zip(made, expected, strict=True)] == expected


@pytest.mark.parametrize("page", ["langchain", "pydantic-ai", "litellm"])
def test_the_documented_program_makes_a_picture(ready, page, tmp_path):
    (block,) = [each for each in blocks_of(ROOT / f"docs/clients/{page}.md") if each.language == "python"]
    program = block.text.replace("http://localhost:9000", ready.url)
    python = (ready.of_litellm if page == "litellm" else ready.of_all).python
    written = run([python, "-W", "ignore", "-c", program], timeout=180, env=ENVIRON, cwd=tmp_path)
    assert np.array_equal(pixels((tmp_path / "apple.png").read_bytes()), PICTURE[0])
    for printed in re.findall(r"print\(.*\)  # (.+)", block.text):
        assert printed in written.splitlines()


def test_webuiapis_helpers_find_what_they_read(ready, tmp_path):
    told = told_by(ready, "webuiapi_helpers", tmp_path)
    assert told == {
        "size": [6, 4],
        "seeds": [3, 3],
        "parameters": PROMPT,
        "models": ["emoji"],
        "samplers": ["the model's own"],
        "model": "emoji",
        "progress": 0.0,
    }
