"""OpenAI's client for JavaScript, installed from a lock file, against the front and a pretended Triton."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.fake_triton import Call, Failure, Picture, Step, fake_triton, four_steps
from tests.support.front import running_front
from tests.support.paths import ROOT

SOURCE = ROOT / "tests/support/npm_openai"
OLDEST_NODE = 20  # the client asks for 22, and works with Debian's
FAILURES = {
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
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed (Debian: apt-get install npm)")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node is {version.strip()}, must be {OLDEST_NODE} or later")
    folder = tmp_path_factory.mktemp("npm") / "openai"
    shutil.copytree(SOURCE, folder)
    installed = subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert installed.returncode == 0, installed.stderr
    return folder


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
    path = package / "program.mjs"
    path.write_text(PROGRAM + program)
    ran = subprocess.run(["node", str(path), url], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


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
            ("NotFoundError", 404, "not_found", None, 1, "POST /v1/chat/completions is not served"),
        ),
        (
            'images.edit({ prompt: "a", image: await OpenAI.toFile(Buffer.alloc(8 << 20), "a.png") })',
            ("NotFoundError", 404, "not_found", None, 1, "POST /v1/images/edits is not served"),
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
    project, lock = (json.loads((SOURCE / f"package{part}.json").read_text()) for part in ("", "-lock"))
    assert lock["packages"][""]["dependencies"] == project["dependencies"]
    entry = lock["packages"]["node_modules/openai"]
    assert entry["version"] == project["dependencies"]["openai"]
    assert entry["integrity"].startswith("sha512-")
    assert "resolved" not in entry
