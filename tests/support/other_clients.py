"""Requests of programs that are not run here, as their sources send them, and how each of them reads its answer."""

from __future__ import annotations

import base64
import http.client
import io
import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from tests.support.edits import BOUNDARY, ONE, Calls, form_of
from tests.support.fake_triton import Call, Failure, Picture, Step

LIMITS = range(32, 129)  # pixels of a side, as the emoji model's
# The settings of the front with which each of these programs gets pictures from the emoji model as it asks by default.
SETTINGS: dict[str, Any] = {
    "default_model": "emoji:64x64",
    "aliases": dict.fromkeys(
        ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-2.5-flare", "gpt-5"), "emoji:64x64"
    ),
}


class Emoji(Calls):
    """A model that refuses sizes as the emoji model does; what it has made is in `made`."""

    def __call__(self, call: Call) -> Iterator[Step | Picture | Failure]:
        for side in ("height", "width"):
            if call.fields.get(side, 64) not in LIMITS:
                yield Failure("INVALID_ARG", f"{side} is {call.fields[side]}, must be a multiple of 8 from 32 to 128")
                return
        yield from super().__call__(call)


@dataclass(frozen=True)
class Replayed:
    """One request of a program.

    Attributes:
        path: that it asks.
        read: the files in the answer's JSON, as the program finds them.
        body: JSON, or the parts of a form; bytes are files.
        headers: beside the type of the body.
    """

    path: str
    read: Callable[[Any], list[bytes]]
    body: dict[str, Any] | tuple[tuple[str, str | bytes], ...]
    headers: dict[str, str] = field(default_factory=dict)

    def sent(self, url: str) -> list[Image.Image]:
        """The pictures that the program would have."""
        if isinstance(self.body, dict):
            body, kind = json.dumps(self.body).encode(), "application/json"
        else:
            body, kind = form_of(*self.body), f"multipart/form-data; boundary={BOUNDARY}"
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", self.path, body, {"Content-Type": kind, **self.headers})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        assert answer.status == 200, content
        return [Image.open(io.BytesIO(file)) for file in self.read(content)]


def _of_base64(content: bytes) -> list[bytes]:
    return [base64.b64decode(each["b64_json"]) for each in json.loads(content)["data"]]


def _of_url(content: bytes) -> list[bytes]:
    """As `fetch` of Node reads `url`: data URLs too."""
    files = []
    for each in json.loads(content)["data"]:
        with urllib.request.urlopen(each["url"]) as file:
            files.append(file.read())
    return files


def _of_a1111(content: bytes) -> list[bytes]:
    answer = json.loads(content)
    info = json.loads(answer["info"])
    assert {"width", "height", "seed"} <= info.keys(), "LibreChat stores them beside the picture"
    assert len(info["infotexts"]) == len(answer["images"])
    return [base64.b64decode(each.split(",", 1)[0]) for each in answer["images"]]


def _of_message(content: bytes) -> list[bytes]:
    """`message.images`, as LibreChat's tool for OpenRouter reads them."""
    message = json.loads(content)["choices"][0]["message"]
    return [_of_data_url(each["image_url"]["url"]) for each in message["images"]]


def _of_deltas(content: bytes) -> list[bytes]:
    """`delta.images` of server-sent events, as Open WebUI reads them."""
    events = [line.removeprefix(b"data: ") for line in content.splitlines() if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    images = [each for delta in deltas for each in delta.get("images") or []]
    return [_of_data_url(each["image_url"]["url"]) for each in images if each["type"] == "image_url"]


def _of_calls(content: bytes) -> list[bytes]:
    output = json.loads(content)["output"]
    return [base64.b64decode(each["result"]) for each in output if each["type"] == "image_generation_call"]


def _of_data_url(url: str) -> bytes:
    start, _, file = url.partition(",")
    assert start == "data:image/png;base64"
    return base64.b64decode(file)


PROMPT = "red apple, 3d"
_MESSAGES = [{"role": "user", "content": PROMPT}]
_GENERATIONS, _EDITS, _CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
_EDIT_OF_N8N = (
    ("image[]", ONE),
    ("prompt", PROMPT),
    *(("model", "gpt-image-1"), ("n", "1"), ("size", "1024x1024"), ("quality", "auto")),
)

REPLAYED = {
    # Open WebUI 0.12.4, backend/open_webui/routers/images.py: image_generations, engine openai, IMAGE_SIZE 512x512
    "Open WebUI, engine openai": Replayed(
        _GENERATIONS,
        _of_base64,
        {"model": "dall-e-2", "prompt": PROMPT, "n": 1, "size": "512x512", "response_format": "b64_json"},
    ),
    # the same, with the model gpt-image-1, for which it leaves out the format (IMAGE_URL_RESPONSE_MODELS_REGEX_PATTERN)
    "Open WebUI, gpt-image-1": Replayed(
        _GENERATIONS, _of_base64, {"model": "gpt-image-1", "prompt": PROMPT, "n": 1, "size": "1024x1024"}
    ),
    # the same file: image_edits; IMAGE_EDIT_MODEL is empty by default
    "Open WebUI, edit": Replayed(
        _EDITS, _of_base64, (("model", ""), ("prompt", PROMPT), ("response_format", "b64_json"), ("image", ONE))
    ),
    # the same file: engine automatic1111, IMAGE_STEPS 50; without AUTOMATIC1111_API_AUTH the header is empty
    "Open WebUI, engine automatic1111": Replayed(
        "/sdapi/v1/txt2img",
        _of_a1111,
        {"prompt": PROMPT, "batch_size": 1, "width": 512, "height": 512, "steps": 50},
        {"authorization": ""},
    ),
    # backend/open_webui/utils/middleware.py: get_image_urls reads the chunks of a chat
    "Open WebUI, chat": Replayed(_CHAT, _of_deltas, {"stream": True, "model": "emoji", "messages": _MESSAGES}),
    # LibreChat, api/app/clients/tools/structured/OpenAIImageTools.js at 8731432f: imageGenTool
    "LibreChat, OpenAI image tools": Replayed(
        _GENERATIONS,
        _of_base64,
        {
            "model": "gpt-image-1",
            **{"prompt": PROMPT, "n": 1, "background": "auto", "output_format": "png", "quality": "auto"},
            "size": "auto",
        },
    ),
    # its default of today (librechat.ai, docs/configuration/tools/openai_image_gen), and a size that agents choose
    "LibreChat, OpenAI image tools, large": Replayed(
        _GENERATIONS,
        _of_base64,
        {
            "model": "gpt-image-2.5-flare",
            **{"prompt": PROMPT, "n": 1, "background": "auto", "output_format": "png", "quality": "auto"},
            "size": "1536x1024",
        },
    ),
    # the same file: imageEditTool
    "LibreChat, OpenAI image tools, edit": Replayed(
        _EDITS,
        _of_base64,
        (("model", "gpt-image-1"), ("prompt", PROMPT), ("quality", "auto"), ("size", "auto"), ("image[]", ONE)),
    ),
    # DALLE3.js at 37d31ec2: no response_format, and url is read
    "LibreChat, DALL-E 3": Replayed(
        _GENERATIONS,
        _of_url,
        {
            "model": "dall-e-3",
            **{"quality": "standard", "style": "vivid", "size": "1024x1024", "prompt": PROMPT, "n": 1},
        },
    ),
    # StableDiffusion.js at 7cacd8a4
    "LibreChat, Stable Diffusion": Replayed(
        "/sdapi/v1/txt2img",
        _of_a1111,
        {
            **{"prompt": PROMPT, "negative_prompt": "blurry", "sampler_index": "DPM++ 2M Karras", "cfg_scale": 4.5},
            **{"steps": 22, "width": 1024, "height": 1024},
        },
    ),
    # OpenRouterImageGen.js at aaa34889
    "LibreChat, OpenRouter": Replayed(
        _CHAT, _of_message, {"model": "emoji", "messages": _MESSAGES, "modalities": ["image", "text"]}
    ),
    # n8n-nodes-langchain 2.41.1, nodes/vendors/OpenAi/v2/actions/image/generate.operation: node version 2.3
    "n8n, generate": Replayed(_GENERATIONS, _of_base64, {"prompt": PROMPT, "model": "gpt-image-1-mini"}),
    # the same, with the node's older default and a size added
    "n8n, generate with dall-e-3": Replayed(
        _GENERATIONS,
        _of_base64,
        {"prompt": PROMPT, "model": "dall-e-3", "response_format": "b64_json", "size": "1024x1024"},
    ),
    # edit.operation
    "n8n, edit": Replayed(_EDITS, _of_base64, _EDIT_OF_N8N),
    # v2/actions/text/response.operation and helpers/responses
    "n8n, message a model": Replayed(
        "/v1/responses",
        _of_calls,
        {
            "model": "emoji",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": PROMPT}]}],
            **{"parallel_tool_calls": True, "store": True, "background": False},
        },
    ),
    # langchain-community 0.4.2, utilities/dalle_image_generator.py
    "LangChain, DallEAPIWrapper": Replayed(
        _GENERATIONS, _of_url, {"model": "dall-e-2", "prompt": PROMPT, "n": 1, "size": "1024x1024"}
    ),
    # aiperf 0.13.0, endpoints/openai_image_generation.py
    "AIPerf": Replayed(
        _GENERATIONS, _of_base64, {"prompt": PROMPT, "model": "emoji", "response_format": "b64_json", "n": 1}
    ),
}
