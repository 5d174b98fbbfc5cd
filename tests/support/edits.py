"""Edits for tests: pictures, what a pretended model was asked for, and requests as they are."""

from __future__ import annotations

import base64
import http.client
import io
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from tests.support.fake_triton import Call, Failure, Picture, Step, four_steps

PROMPTS = {
    "torn": Failure("INVALID_ARG", "input_image cannot be read, must be a whole picture: it is cut off"),
    "other size": Failure("INVALID_ARG", "mask_image has 8 x 8 pixels, must have 6 x 4, as input_image"),
    "small": Failure("INVALID_ARG", "height is 1024, must be a multiple of 8 from 32 to 128"),
    "full": Failure("UNAVAILABLE", "2 requests are in flight and 1 wait: try again in 0.4 s"),
}
BOUNDARY = "edge-of-a-part"


def file_of(shade: int, mode: str = "RGB") -> bytes:
    """A PNG of one shade."""
    file = io.BytesIO()
    Image.new("L", (6, 4), shade).convert(mode).save(file, "png")
    return file.getvalue()


def mask_of(mode: str = "LA") -> bytes:
    """A mask whose left half is transparent."""
    file = io.BytesIO()
    alpha = Image.new("L", (6, 4), 255)
    alpha.paste(0, (0, 0, 3, 4))
    image = Image.new(mode.removesuffix("A"), (6, 4))
    image.putalpha(alpha)
    image.save(file, "png")
    return file.getvalue()


ONE, TWO, THREE = (file_of(shade) for shade in (10, 20, 30))


class Calls:
    """What the model was asked for."""

    def __init__(self) -> None:
        self.made: list[Call] = []

    def __call__(self, call: Call) -> Iterator[Step | Picture | Failure]:
        self.made.append(call)
        if failure := PROMPTS.get(call.fields.get("prompt", "")):
            yield failure
        else:
            yield from four_steps(call)

    @property
    def last(self) -> dict[str, Any]:
        return self.made[-1].fields


def ask(url: str, body: Any, kind: str, path: str = "/v1/images/edits") -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and JSON of a request as it is."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("POST", path, body, {"Content-Type": kind})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def send_json(url: str, **fields: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    return ask(url, json.dumps({"prompt": "star", **fields}), "application/json")


def form_of(*parts: tuple[str, str | bytes]) -> bytes:
    """A form; bytes are files."""
    body = b""
    for name, value in parts:
        file = '; filename="a.png"' if isinstance(value, bytes) else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def send_form(url: str, *parts: tuple[str, str | bytes]) -> tuple[int, dict[str, str], dict[str, Any]]:
    return ask(url, form_of(*parts), f"multipart/form-data; boundary={BOUNDARY}")


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def data_url(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"
