"""OpenAI's client for JavaScript, installed from a lock file, against the front and a pretended Triton."""

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

SOURCE = ROOT / "tests/support/npm_openai"
FILES = [base64.b64encode(encoded_image(np.full((1, 4, 6, 3), shade, np.uint8))).decode() for shade in (10, 20, 30)]
FAILURES = {
    "torn": Failure("INVALID_ARG", "input_image cannot be read, must be a whole picture: it is cut off"),
    "small": Failure("INVALID_ARG", "height is 1024, must be a multiple of 8 from 32 to 128"),
    "late": Failure("CANCELLED", "DEADLINE: deadline_ms of 5 cannot be met"),
    "full": Failure("UNAVAILABLE", "2 requests are in flight and 1 wait: try again in 0.1 s"),
}
PROGRAM = """
import OpenAI from "openai";
let sent = 0;
const counted = (address, ...more) => {
  sent += String(address).startsWith("http"); // it also tries what fetch can do, with a data URL
  return fetch(address, ...more);
};
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 1, fetch: counted });
const file = async (base64) => OpenAI.toFile(Buffer.from(base64, "base64"), "a.png", { type: "image/png" });
const tell = (value) => console.log(JSON.stringify(value));
const refused = async (call) => {
  sent = 0;
  try { await call(); } catch (error) {
    const { status, code, param, type, requestID, message } = error;
    return { kind: error.constructor.name, status, code, param, type, requestID, message, sent };
  }
  return null;
};
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the client is installed."""
    return installed(SOURCE, tmp_path_factory.mktemp("npm") / "openai")


def behaviour(call: Call) -> Iterator[Step | Picture | Failure]:
    if failure := FAILURES.get(call.fields["prompt"]):
        yield failure
    else:
        yield from four_steps(call)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_triton(behaviour) as triton, running_front(triton, aliases={"gpt-image-2": "emoji"}) as url:
        yield url


def run(package: Path, url: str, program: str) -> Any:
    """What a program tells that has the client's names."""
    return told_by(package, PROGRAM + program, url)


def size_of(file: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(file))).size


def test_it_generates_with_null_for_what_is_left_out(package, url):
    answer = run(
        package,
        url,
        """
        const nothing = { n: null, size: null, quality: null, stream: null, output_format: null, model: null };
        tell(await client.images.generate({ prompt: "star", ...nothing, safety_identifier: "someone" }));
        """,
    )
    assert size_of(answer["data"][0]["b64_json"]) == (6, 4)
    assert answer["data"][0]["report"]["received"] == {"prompt": "star"}
    assert answer["usage"]["total_tokens"] == 0


def test_it_streams(package, url):
    events = run(
        package,
        url,
        """
        const events = [];
        const stream = await client.images.generate({ prompt: "star", stream: true, partial_images: 2 });
        for await (const event of stream) events.push(event);
        tell(events);
        """,
    )
    assert [event["type"].rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.get("partial_image_index") for event in events] == [0, 1, None]
    assert all(size_of(event["b64_json"]) == (6, 4) for event in events)


@pytest.mark.parametrize("count", [1, 3])
def test_it_edits_one_picture_and_several(package, url, count):
    answer = run(
        package,
        url,
        f"""
        const files = await Promise.all({json.dumps(FILES[:count])}.map(file));
        const image = files.length > 1 ? files : files[0];
        const own = {{ seed: 7, strength: 0.5, cache_schedule: "0 4" }};
        tell(await client.images.edit({{ prompt: "star", image, n: 2, stream: false, size: "64x96", ...own }}));
        """,
    )
    received = {"prompt": "star", "width": 64, "height": 96, "strength": 0.5, "cache_schedule": "0 4"}
    assert [each["report"]["received"] for each in answer["data"]] == [
        {**received, "seed": seed, "input_image": FILES[:count]} for seed in (7, 8)
    ]


def test_it_edits_with_a_mask_as_a_stream(package, url):
    events = run(
        package,
        url,
        f"""
        const [image, mask] = await Promise.all({json.dumps(FILES[:2])}.map(file));
        const events = [];
        const stream = await client.images.edit({{ prompt: "star", image, mask, stream: true, partial_images: 2 }});
        for await (const event of stream) events.push(event);
        tell(events);
        """,
    )
    assert [event["type"] for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert all(size_of(event["b64_json"]) == (6, 4) for event in events)
    received = events[-1]["report"]["received"]
    assert (received["input_image"], received["mask_image"]) == (FILES[:1], FILES[1:2])


def test_it_retrieves_models_by_name_and_alias(package, url):
    models = run(
        package,
        url,
        """
        const listed = [];
        for await (const model of client.models.list()) listed.push(model);
        const [one, alias] = [await client.models.retrieve("emoji"), await client.models.retrieve("gpt-image-2")];
        tell({ listed, one, alias });
        """,
    )
    assert [model["id"] for model in models["listed"]] == ["emoji"]
    assert models["one"] == models["listed"][0]
    assert models["alias"] == {**models["one"], "id": "gpt-image-2"}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            'images.generate({ prompt: "small", size: "1024x1024" })',
            ("BadRequestError", 400, "invalid_value", "size", 1, "height is 1024, must be a multiple of 8"),
        ),
        (
            'images.generate({ prompt: "star", n: 2, stream: true })',
            ("BadRequestError", 400, "invalid_value", "n", 1, "n is 2, must be 1 with stream"),
        ),
        (
            'models.retrieve("unicorn")',
            ("NotFoundError", 404, "model_not_found", "model", 1, "model is unicorn, must be one that is ready: emoji"),
        ),
        (
            'images.generate({ prompt: "late" })',
            ("InternalServerError", 504, "deadline_exceeded", None, 1, "deadline_ms of 5 cannot be met"),
        ),
        (
            'images.generate({ prompt: "full" })',
            ("InternalServerError", 503, "unavailable", None, 2, "2 requests are in flight and 1 wait"),
        ),
        (
            'chat.completions.create({ model: "emoji", messages: [] })',
            ("BadRequestError", 400, "invalid_value", "messages", 1, "messages is [], must be a list of messages"),
        ),
        (
            'embeddings.create({ model: "emoji", input: "star" })',
            ("NotFoundError", 404, "not_found", None, 1, "POST /v1/embeddings is not served"),
        ),
        (
            'images.edit({ prompt: "torn", image: await file("AAAA") })',
            ("BadRequestError", 400, "invalid_value", "image", 1, "input_image cannot be read"),
        ),
        (
            'images.edit({ prompt: "star", image: await OpenAI.toFile(Buffer.alloc(33 << 20), "a.png") })',
            ("APIError", 413, "too_large", None, 1, "the body is larger than 33554432 bytes"),
        ),
        (
            'images.createVariation({ image: await OpenAI.toFile(Buffer.alloc(8 << 20), "a.png") })',
            ("NotFoundError", 404, "not_found", None, 1, "POST /v1/images/variations is not served"),
        ),
    ],
)
def test_its_errors_have_status_code_field_and_id_and_are_sent_again_only_where_that_helps(
    package, url, call, expected
):
    error = run(package, url, f"tell(await refused(async () => client.{call}));")
    *told, sentence = expected
    assert [error.get(name) for name in ("kind", "status", "code", "param", "sent")] == told
    assert sentence in error["message"]
    assert error["requestID"].startswith("req_")


def test_the_package_is_pinned_and_no_registry_is_named():
    check_pinned(SOURCE, "openai")
