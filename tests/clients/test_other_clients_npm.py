"""Vercel's AI SDK and OpenAI's client for JavaScript ask for pictures through responses and chat."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.edits import ONE, pixels
from tests.support.fake_triton import PICTURE
from tests.support.npm import installed, told_by
from tests.support.other_clients import PROMPT, Emoji
from tests.support.other_clients_front import front_of_emoji, late_failure, url_of
from tests.support.paths import ROOT

_AI = """
import { createOpenAI } from "@ai-sdk/openai";
import { generateImage, generateText, streamText } from "ai";
globalThis.AI_SDK_LOG_WARNINGS = false;
const [url, one, prompt] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: url + "/v1", apiKey: "none" });
const file = Uint8Array.from(Buffer.from(one, "base64"));
const asking = (more, args) => ({
  model: openai("gpt-5"),
  tools: { image_generation: openai.tools.imageGeneration(args) },
  maxRetries: 0,
  ...more,
});
const resultOf = ({ staticToolResults }) => staticToolResults[0].output.result;
"""
_AI_PICTURES = (
    _AI
    + """
const content = [{ type: "text", text: prompt }, { type: "file", mediaType: "image/png", data: file }];
const made = await generateText(asking({ prompt }, { outputFormat: "png", size: "1024x1024" }));
const edited = await generateText(asking({ messages: [{ role: "user", content }] }));
const named = await generateImage({ model: openai.image("gpt-image-1"), prompt, size: "1024x1024", maxRetries: 0 });
console.log(JSON.stringify([resultOf(made), resultOf(edited), named.image.base64]));
"""
)
_AI_STREAM = (
    _AI
    + """
const results = [];
for await (const part of streamText(asking({ prompt }, { partialImages: 2 })).fullStream) {
  if (part.type === "error") throw part.error;
  if (part.type === "tool-result") results.push(part.output.result);
}
console.log(JSON.stringify(results));
"""
)
_AI_FAILURE = (
    _AI
    + """
const errors = [];
const { fullStream } = streamText(asking({ prompt, onError() {} }));
for await (const part of fullStream) if (part.type === "error") errors.push(part.error);
console.log(JSON.stringify(errors.map((error) => String(error?.message ?? JSON.stringify(error)))));
"""
)
_OPENAI = """
import OpenAI from "openai";
const [url, one, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0 });
const image_url = "data:image/png;base64," + one;
const parts = [{ type: "text", text: prompt }, { type: "image_url", image_url: { url: image_url } }];
const fileOf = ({ images }) => images[0].image_url.url.split(",")[1];

const chat = await client.chat.completions.create({ model: "emoji", messages: [{ role: "user", content: parts }] });
const deltas = [];
const messages = [{ role: "user", content: prompt }];
for await (const chunk of await client.chat.completions.create({ model: "emoji", messages, stream: true })) {
  if (chunk.choices[0].delta.images) deltas.push(chunk.choices[0].delta);
}
const tools = [{ type: "image_generation" }];
const content = [{ type: "input_text", text: prompt }, { type: "input_image", image_url, detail: "auto" }];
const response = await client.responses.create({ model: "gpt-5", input: [{ role: "user", content }], tools });
const last = await client.responses.stream({ model: "gpt-5", input: prompt, tools }).finalResponse();
console.log(JSON.stringify([
  fileOf(chat.choices[0].message),
  fileOf(deltas[0]),
  response.output[0].result,
  last.output[0].result,
]));
"""


@pytest.fixture(scope="module")
def front() -> Iterator[tuple[str, Emoji]]:
    with front_of_emoji() as both:
        yield both


@pytest.fixture(scope="module")
def ai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(ROOT / "tests/support/npm_ai", tmp_path_factory.mktemp("npm") / "ai")


@pytest.fixture(scope="module")
def of_openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(ROOT / "tests/support/npm_openai", tmp_path_factory.mktemp("npm") / "openai")


def told(package: Path, program: str, url: str) -> Any:
    return told_by(package, program, url, base64.b64encode(ONE).decode(), PROMPT)


def is_picture(file: str) -> bool:
    return np.array_equal(pixels(base64.b64decode(file)), PICTURE[0])


def test_vercels_sdk_gets_pictures_from_its_tool_and_its_image_model(ai, front):
    url, emoji = front
    assert [is_picture(file) for file in told(ai, _AI_PICTURES, url)] == [True, True, True]
    made, edited, named = [call.fields for call in emoji.made[-3:]]
    assert made == named | {"num_frames": 1} == {"prompt": PROMPT, "num_frames": 1, "width": 64, "height": 64}
    assert edited == {"prompt": PROMPT, "num_frames": 1, "input_image": [ONE]}


def test_vercels_sdk_shows_previews_while_it_waits(ai, front):
    url, _ = front
    *previews, last = told(ai, _AI_STREAM, url)
    assert [pixels(base64.b64decode(file))[0, 0, 0] for file in previews] == [2, 3]
    assert is_picture(last)


def test_vercels_sdk_has_the_sentence_of_a_late_error(ai):
    with late_failure() as client:
        (message,) = told(ai, _AI_FAILURE.replace("gpt-5", "emoji"), url_of(client))
    assert message == "it broke"


def test_openais_client_gets_pictures_from_chat_and_responses(of_openai, front):
    url, emoji = front
    assert [is_picture(file) for file in told(of_openai, _OPENAI, url)] == [True] * 4
    pictures = [call.fields.get("input_image") for call in emoji.made[-4:]]
    assert pictures == [[ONE], None, [ONE], None]
