"""Vercel's AI SDK, installed from a lock file, edits pictures through the front."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.fake_triton import Call, Failure, Picture, Step, fake_triton, four_steps
from tests.support.front import running_front
from tests.support.npm import check_pinned, installed, told_by
from tests.support.paths import ROOT
from triton_taylorseer_client.messages import encoded_image

SOURCE = ROOT / "tests/support/npm_ai"
FILES = [base64.b64encode(encoded_image(np.full((1, 4, 6, 3), shade, np.uint8))).decode() for shade in (10, 20, 30)]
PROGRAM = """
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";
globalThis.AI_SDK_LOG_WARNINGS = false;
const { url, images, mask, text, ...more } = JSON.parse(process.argv[2]);
const bytes = (base64) => Uint8Array.from(Buffer.from(base64, "base64"));
const front = createOpenAICompatible({ name: "front", baseURL: url + "/v1", apiKey: "none" });
try {
  const { images: made } = await generateImage({
    model: front.imageModel("emoji"),
    prompt: { text, images: images.map(bytes), ...(mask && { mask: bytes(mask) }) },
    maxRetries: 0,
    ...more,
  });
  console.log(JSON.stringify(made.map((each) => each.base64)));
} catch (error) {
  console.log(JSON.stringify({ status: error.statusCode, message: error.message }));
}
"""


class Calls:
    """What the model was asked for."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    def __call__(self, call: Call) -> Iterator[Step | Picture | Failure]:
        self.made.append(call.fields)
        if call.fields["prompt"] == "torn":
            yield Failure("INVALID_ARG", "input_image cannot be read, must be a whole picture: it is cut off")
        else:
            yield from four_steps(call)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the SDK is installed."""
    return installed(SOURCE, tmp_path_factory.mktemp("npm") / "ai")


@pytest.fixture(scope="module")
def calls() -> Calls:
    return Calls()


@pytest.fixture(scope="module")
def url(calls: Calls) -> Iterator[str]:
    with fake_triton(calls) as triton, running_front(triton) as url:
        yield url


def edited(package: Path, url: str, **request: Any) -> Any:
    """What the SDK makes of a request: pictures in base64, or an error."""
    return told_by(package, PROGRAM, json.dumps({"url": url, "text": "star", **request}))


@pytest.mark.parametrize("count", [1, 3])
def test_it_edits_one_picture_and_several(package, url, calls, count):
    more = {"n": 2, "size": "64x96", "providerOptions": {"front": {"seed": 7, "strength": 0.5, "stream": False}}}
    made = edited(package, url, images=FILES[:count], **more)
    assert [Image.open(io.BytesIO(base64.b64decode(each))).size for each in made] == [(6, 4), (6, 4)]
    files = [base64.b64decode(file) for file in FILES[:count]]
    expected = {"prompt": "star", "width": 64, "height": 96, "strength": 0.5, "input_image": files}
    assert sorted(calls.made[-2:], key=lambda fields: fields["seed"]) == [
        {**expected, "seed": 7},
        {**expected, "seed": 8},
    ]


def test_it_edits_with_a_mask(package, url, calls):
    assert len(edited(package, url, images=FILES[:1], mask=FILES[1])) == 1
    assert calls.made[-1]["mask_image"] == [base64.b64decode(FILES[1])]


def test_its_error_has_the_models_sentence(package, url):
    assert edited(package, url, text="torn", images=FILES[:1]) == {
        "status": 400,
        "message": "input_image cannot be read, must be a whole picture: it is cut off",
    }


def test_the_packages_are_pinned_and_no_registry_is_named():
    check_pinned(SOURCE, "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible")
