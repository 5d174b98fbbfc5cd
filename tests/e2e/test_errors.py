"""Bad requests, full queues, deadlines, cancels and broken threads through a real Triton, which goes on serving."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from plugin.ops.control import http_headers
from triton_taylorseer_client import Client, DeadlineExceeded, GenerationError, InvalidArgument, Unavailable
from triton_taylorseer_client.messages import INPUTS

DTYPES = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}

# Fields, and what the message must say: field, value and allowed range. More: tests/plugin/triton_model/test_stream.py.
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt is missing, must be 1 to 8192 bytes of UTF-8"),
    ({"prompt": b"\xff\xfe"}, "prompt is invalid at byte 0, must be UTF-8 text"),
    ({"height": 65}, "height is 65, must be a multiple of 8 from 32 to 128"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan, must be a finite number from 0.0 to 100.0"),
]
IDS = [next(iter(fields), "nothing") for fields, _ in BAD]


def tensors(module: Any, fields: dict[str, Any]) -> list[Any]:
    given = fields if "prompt" in fields or not fields else {"prompt": b"red apple, 3d", **fields}
    given = given or {"seed": 1}
    inputs = []
    for name, value in given.items():
        dtype = INPUTS.get(name, "BYTES")
        tensor = module.InferInput(name, [1], dtype)
        tensor.set_data_from_numpy(np.array([value], dtype=DTYPES[dtype]))
        inputs.append(tensor)
    return inputs


def infer(triton, protocol: str, inputs: list[Any]) -> Any:
    return (triton.grpc if protocol == "grpc" else triton.http).infer("emoji", inputs)


@pytest.mark.parametrize(("fields", "message"), BAD, ids=IDS)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_bad_fields_are_invalid_arguments_with_field_value_and_range(triton, protocol, fields, message):
    module = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, protocol, tensors(module, fields))
    assert message in str(caught.value)
    assert str(caught.value.status()) == ("StatusCode.INVALID_ARGUMENT" if protocol == "grpc" else "400")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    ("name", "dtype", "shape", "words"),
    [
        ("seed", "INT32", [1], ["seed", "INT32", "INT64"]),
        ("height", "FP32", [1], ["height", "FP32", "INT32"]),
        ("seed", "INT64", [2], ["seed", "[2]", "[1]"]),
        ("prompt", "BYTES", [1, 1], ["prompt", "[1,1]", "[1]"]),
        ("colour", "INT32", [1], ["colour"]),
    ],
)
def test_wrong_dtypes_shapes_and_names_are_invalid_arguments(triton, protocol, name, dtype, shape, words):
    module = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    inputs = tensors(module, {"prompt": b"red apple, 3d"}) if name != "prompt" else []
    tensor = module.InferInput(name, shape, dtype)
    value: Any = b"red apple, 3d" if dtype == "BYTES" else 64
    tensor.set_data_from_numpy(np.full(shape, value, dtype=DTYPES[dtype]))
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, protocol, [*inputs, tensor])
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert str(caught.value.status()) == ("StatusCode.INVALID_ARGUMENT" if protocol == "grpc" else "400")


def test_streams_name_bad_fields_too(triton):
    with triton.client() as client, pytest.raises(InvalidArgument, match="cache_order is 9, must be an integer from"):
        list(client.stream("red apple, 3d", cache_order=9))


def test_generate_endpoint_answers_bad_fields_with_400(triton):
    body = json.dumps({"prompt": "red apple, 3d", "num_inference_steps": 0}).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{triton.http_url}/v2/models/emoji/generate", body, timeout=60)
    assert caught.value.code == 400
    assert "num_inference_steps is 0, must be from 1 to 1000" in caught.value.read().decode()


def test_server_serves_after_all_of_this(triton):
    with triton.client() as client:
        assert client.generate("red apple, 3d", num_inference_steps=4).image.shape == (1, 64, 64, 3)


def test_a_passed_deadline_ends_the_request_with_its_sentence(triton):
    with triton.client() as client:
        # Of a size that nothing is known of yet: else the deadline is refused at once.
        fields = {"num_inference_steps": 500, "cache_interval": 1, "deadline_ms": 200, "height": 112, "width": 32}
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"DEADLINE: deadline_ms of 200 passed after \d+ of 500 steps"):
            client.generate("red apple, 3d", **fields)
    assert time.monotonic() - began < 2, "noticed at the next step, not at the end"
    triton.wait_until_idle()


def test_cancelling_a_plain_call_ends_the_work(triton):
    before = triton.wait_until_idle()
    inputs = tensors(tritonclient.grpc, {"num_inference_steps": 1000, "cache_interval": 1})
    call = triton.grpc.async_infer("emoji", inputs, callback=lambda result, error: None)
    while triton.metrics()["taylorseer_requests_in_flight"] == 0:
        time.sleep(0.02)
    call.cancel()
    began = time.monotonic()
    after = triton.wait_until_idle()
    assert time.monotonic() - began < 2, "1000 full steps take many times that"
    assert after["taylorseer_requests_total cancelled"] - before["taylorseer_requests_total cancelled"] == 1


def test_a_full_queue_refuses_with_unavailable_and_takes_requests_again(triton):
    """The faulty model has two slots and room for one to wait."""
    outcomes: list[str] = []

    def call() -> None:
        with triton.client("faulty") as client:
            try:
                list(client.stream("red apple, 3d", num_inference_steps=40, cache_interval=1))
                outcomes.append("ok")
            except Unavailable as error:
                outcomes.append(str(error).split(",")[0])

    threads = [threading.Thread(target=call) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        sorted(outcomes) == ["2 requests are in flight and 1 wait", "2 requests are in flight and 1 wait"] + ["ok"] * 3
    )
    triton.wait_until_idle("faulty")
    with triton.client("faulty") as client:
        assert client.generate("red apple, 3d", num_inference_steps=4).image.shape == (1, 64, 64, 3)


def test_no_server_is_told_in_a_sentence():
    with pytest.raises(Unavailable, match=r"no server answers at 127.0.0.1:1: start one with"):
        Client("127.0.0.1:1").generate("red apple, 3d")


def test_a_broken_response_thread_fails_its_requests_and_takes_the_model_out_until_it_is_loaded_again(triton):
    http = triton.http
    assert http.is_model_ready("faulty_stream")
    other: list[BaseException] = []

    def wait_in_company() -> None:
        with triton.client("faulty") as client:
            try:
                list(client.stream("red apple, 3d", num_inference_steps=1000, cache_interval=1))
            except GenerationError as error:
                other.append(error)

    company = threading.Thread(target=wait_in_company)
    company.start()
    while triton.metrics("faulty")["taylorseer_requests_in_flight"] == 0:
        time.sleep(0.02)
    with (
        triton.client("faulty") as client,
        pytest.raises(Unavailable, match=r"the model failed: RuntimeError: .*broke"),
    ):
        list(client.stream("red apple, 3d", seed=666))
    company.join(timeout=20)
    assert not company.is_alive(), "no request waits for ever"
    assert isinstance(other[0], Unavailable)
    deadline = time.monotonic() + 30
    while http.is_model_ready("faulty_stream"):
        assert time.monotonic() < deadline, "the model must stop being ready"
        time.sleep(0.1)
    with triton.client() as client:
        assert client.generate("red apple, 3d", num_inference_steps=4).image.shape == (1, 64, 64, 3)
    http.load_model("faulty_stream", headers=http_headers(triton.server.config.control_key))
    with triton.client("faulty") as client:
        assert client.generate("red apple, 3d", num_inference_steps=4).image.shape == (1, 64, 64, 3)
