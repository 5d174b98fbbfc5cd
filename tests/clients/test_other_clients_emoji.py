"""Each way to ask for a picture, with sizes that the emoji model cannot make, against that model in a real Triton."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from tests.support.edits import ask
from tests.support.front import running_front
from tests.support.other_clients import PROMPT, REPLAYED, SETTINGS
from tests.support.repository import SHIPPED
from tests.support.serving import Triton, running

pytestmark = pytest.mark.triton

SEED, STEPS = 7, 12
OWN: dict[str, Any] = {"seed": SEED, "num_inference_steps": STEPS}
LARGE = [name for name, each in REPLAYED.items() if any(size in str(each.body) for size in ("1024", "512"))]


@pytest.fixture(scope="module")
def server() -> Iterator[Triton]:
    with running(SHIPPED, "emoji") as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Triton) -> Iterator[str]:
    with running_front(server.grpc_url, **SETTINGS) as url:
        yield url


@pytest.fixture(scope="module")
def expected(server: Triton) -> np.ndarray:
    """The picture of one request by the Python client: (64, 64, 3) uint8."""
    with server.client() as client:
        return client.generate(PROMPT, **OWN).image[0]


def pixels(file: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))


@pytest.mark.parametrize("name", LARGE)
def test_what_it_cannot_make_is_made_in_the_settings_size(url, name):
    for picture in REPLAYED[name].sent(url):
        assert picture.size == (64, 64)


def test_chat_responses_and_a1111_make_the_picture_that_the_python_client_makes(url, expected):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions.create(
            model="gpt-5",
            messages=[{"role": "user", "content": PROMPT}],
            extra_body=OWN | {"size": "1024x1024"},
        )
        tool: Any = {"type": "image_generation", "size": "1024x1024"}
        response = client.responses.create(model="gpt-5", input=PROMPT, tools=[tool], extra_body=OWN)
    fields = f'{{"prompt": "{PROMPT}", "seed": {SEED}, "steps": {STEPS}, "width": 512, "height": 512}}'
    _, _, a1111 = ask(url, fields, "application/json", "/sdapi/v1/txt2img")
    files = (
        chat.choices[0].message.images[0]["image_url"]["url"].partition(",")[2],
        response.output[0].result,
        a1111["images"][0],
    )
    for file in files:  # one request at a time makes the same bits
        assert np.array_equal(pixels(file), expected)
