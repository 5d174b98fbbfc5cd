"""Whoever reaches the ports can make pictures, and cannot control the server without its key."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from functools import partial

import pytest
from tritonclient.utils import InferenceServerException

from plugin.ops.control import grpc_headers, http_headers
from triton_taylorseer_client import AsyncClient

# Each is one that anybody could call if Triton did not ask for the key.
GRPC = {
    "index": lambda client, headers: client.get_model_repository_index(headers=headers),
    "load": lambda client, headers: client.load_model("emoji", headers=headers),
    "unload": lambda client, headers: client.unload_model("nobody", headers=headers),
    "shared memory": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    "tracing": lambda client, headers: client.get_trace_settings(headers=headers),
    "logging": lambda client, headers: client.get_log_settings(headers=headers),
}
HTTP = {
    "index": ("v2/repository/index", "POST"),
    "load": ("v2/repository/models/emoji/load", "POST"),
    "unload": ("v2/repository/models/nobody/unload", "POST"),
    "shared memory": ("v2/systemsharedmemory/status", "GET"),
    "tracing": ("v2/trace/setting", "GET"),
    "logging": ("v2/logging", "GET"),
}


@pytest.mark.parametrize("what", GRPC)
def test_grpc_asks_for_the_key(triton, what):
    call = partial(GRPC[what], triton.grpc)
    for headers in ({}, grpc_headers("0" * 32), http_headers(triton.server.config.control_key)):
        with pytest.raises(InferenceServerException, match="restricted, expecting header 'triton-grpc-protocol-"):
            call(headers)
    call(grpc_headers(triton.server.config.control_key))


@pytest.mark.parametrize("what", HTTP)
def test_http_asks_for_the_key(triton, what):
    path, method = HTTP[what]

    def ask(headers: dict[str, str]) -> int:
        data = b"{}" if method == "POST" else None
        request = urllib.request.Request(f"http://{triton.http_url}/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status

    for headers in ({}, http_headers("0" * 32), grpc_headers(triton.server.config.control_key)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(headers)
        assert caught.value.code == 403
        assert "restricted" in json.loads(caught.value.read())["error"]
    assert ask(http_headers(triton.server.config.control_key)) == 200


def test_models_and_pictures_need_no_key(triton):
    with triton.client() as client:
        assert client.generate("red apple, 3d", num_inference_steps=2).image.shape == (1, 64, 64, 3)
    assert triton.http.is_model_ready("emoji_stream")


async def _ready(url: str) -> list[str]:
    async with AsyncClient(url) as client:
        return await client.ready_models()


def test_the_ready_models_are_known_without_a_key(triton):
    index = triton.grpc.get_model_repository_index(headers=grpc_headers(triton.server.config.control_key))
    ready = {model.name for model in index.models if model.state == "READY"}
    assert {"emoji", "emoji_stream"} <= ready
    assert set(asyncio.run(_ready(triton.grpc_url))) == ready
