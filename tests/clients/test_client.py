"""The client against throwaway models in a real Triton: what it sends, what it gives back, how it fails."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from plugin.ops.server import Server
from tests.support.both_clients import CLIENTS
from tests.support.throwaway import FIELDS
from triton_taylorseer_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Generation,
    GenerationError,
    InvalidArgument,
    Progress,
    Unavailable,
)
from triton_taylorseer_client.messages import INPUTS
from triton_taylorseer_client.patience import Tries

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)
VALUES = {"STRING": "Käse 🧀", "INT64": 2**40, "INT32": -3, "FP32": 0.5, "BOOL": True}
DTYPES = {"STRING": "object", "INT64": "int64", "INT32": "int32", "FP32": "float32", "BOOL": "bool"}
FAILURES = [
    ("invalid", InvalidArgument, "cache_order is 9, must be from 0 to 4"),
    ("full", Unavailable, "2 requests are in flight and 1 wait"),
    ("cancelled", Cancelled, "cancelled after 3 of 8 steps"),
    ("late", DeadlineExceeded, "DEADLINE: deadline_ms of 5 passed"),
    ("broken", GenerationError, "it broke"),
]


@pytest.fixture(params=list(CLIENTS))
def client_class(request: pytest.FixtureRequest) -> Any:
    return CLIENTS[request.param]


@pytest.fixture
def client(echo: Server, client_class: Any) -> Iterator[Client]:
    with client_class(echo.grpc_url, "echo") as client:
        yield client


def test_the_client_knows_every_field_of_the_models():
    assert {name: kind.replace("BYTES", "STRING") for name, kind in INPUTS.items()} == FIELDS


@pytest.mark.parametrize("way", ["plain", "stream"])
def test_fields_arrive_by_name_dtype_and_value(client, way):
    others = ("num_frames", "prompt", "input_image", "mask_image")
    fields = {name: VALUES[dtype] for name, dtype in FIELDS.items() if name not in others}
    fields["num_inference_steps"] = 4
    if way == "plain":
        generation = client.generate("red apple", **fields)
    else:
        *_, generation = client.stream("red apple", **fields)
    expected = {name: [DTYPES[FIELDS[name]], [1], value] for name, value in fields.items()}
    assert generation.report["received"] == {**expected, "prompt": ["object", [1], "red apple"]}


@pytest.mark.parametrize("way", ["plain", "stream"])
def test_pictures_arrive_as_their_files_one_after_another(client, way):
    files = [b"\x89PNG\0", b"\xff\xd8", b"\x89PNG\0"]
    fields = {"input_image": files, "mask_image": b"\x89PNG", "strength": 0.5}
    if way == "plain":
        generation = client.generate(**fields)
    else:
        *_, generation = client.stream(**fields)
    assert generation.report["received"] == {
        "input_image": ["object", [3], [file.hex() for file in files]],
        "mask_image": ["object", [1], ["89504e47"]],
        "strength": ["float32", [1], 0.5],
    }


def test_the_request_s_id_arrives(client):
    *_, streamed = client.stream("red apple", request_id="mine")
    plain = client.generate("red apple", request_id="mine")
    assert [streamed.report["id"], plain.report["id"], client.generate("red apple").report["id"]] == ["mine"] * 2 + [""]


def test_what_is_left_out_or_none_is_not_sent(client):
    assert client.generate("red apple", seed=None).report["received"].keys() == {"prompt"}
    assert client.generate(class_label=7).report["received"].keys() == {"class_label"}


def test_plain_call_gives_image_and_report(client):
    generation = client.generate("red apple")
    assert np.array_equal(generation.image, IMAGE)
    assert generation.image.dtype == np.uint8
    assert generation.report["full_steps"] == [0, 5]


@pytest.mark.parametrize("prompt", ["red apple", "separate final flag"])
def test_stream_gives_progress_in_order_then_the_generation(client, prompt):
    *updates, generation = client.stream(prompt, num_inference_steps=6)
    assert updates == [Progress(step, 6, None) for step in range(1, 7)]
    assert np.array_equal(generation.image, IMAGE)
    assert generation.report["num_steps"] == 6


def test_previews_come_where_they_are_due(client):
    *updates, _ = client.stream("red apple", preview=True)
    assert {update.step for update in updates if update.preview is not None} == {5, 10}
    assert np.array_equal(updates[4].preview, np.full((4, 6, 3), 5, np.uint8))


def test_a_stream_without_a_picture_is_an_error(client):
    with pytest.raises(GenerationError, match="echo_stream ended without a picture"):
        list(client.stream("nothing", num_inference_steps=2))


@pytest.mark.parametrize("way", ["plain", "stream"])
@pytest.mark.parametrize(("prompt", "kind", "message"), FAILURES)
def test_errors_keep_their_kind_and_sentence(client, way, prompt, kind, message):
    with pytest.raises(GenerationError, match=message) as caught:
        client.generate(prompt) if way == "plain" else list(client.stream(prompt))
    assert type(caught.value) is kind


def test_progress_before_an_error_is_given(client):
    stream = client.stream("broken")
    assert [next(stream).step for _ in range(3)] == [1, 2, 3]
    with pytest.raises(GenerationError, match="it broke"):
        next(stream)


def test_closing_the_iterator_cancels_the_request_at_the_server(client):
    *_, before = client.stream("red apple", num_inference_steps=1)
    stream = client.stream("red apple", num_inference_steps=1000)
    assert next(stream).step == 1
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 2, "1000 steps take 10 s"
    deadline = time.monotonic() + 5
    while True:
        *_, after = client.stream("red apple", num_inference_steps=1)
        if len(after.report["cancelled"]) == len(before.report["cancelled"]) + 1:
            break
        assert time.monotonic() < deadline, "the server must hear of it"
    assert after.report["ended_at"][-1] < 500


def test_cancelled_streams_leave_no_threads(client):
    def cancel_one() -> None:
        stream = client.stream("red apple", num_inference_steps=1000)
        next(stream)
        stream.close()

    cancel_one()
    before = threading.active_count()
    for _ in range(8):
        cancel_one()
    deadline = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline, f"{threading.active_count() - before} threads were left by 8 streams"
        time.sleep(0.05)


def test_streams_of_one_client_run_side_by_side(client):
    streams = [client.stream("red apple", num_inference_steps=5, seed=seed) for seed in range(3)]
    assert [next(stream).step for stream in streams] == [1, 1, 1]
    seeds = [[*stream][-1].report["received"]["seed"][2] for stream in streams]
    assert seeds == [0, 1, 2]


@pytest.mark.parametrize("way", ["plain", "stream"])
def test_the_clients_own_time_limit(client, way):
    began = time.monotonic()
    call = client.generate if way == "plain" else lambda *given, **fields: list(client.stream(*given, **fields))
    with pytest.raises(DeadlineExceeded):
        call("slow", num_inference_steps=1000, timeout_s=0.3)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 2**63}, "seed is 9223372036854775808, must be from -9223372036854775808 to 9223372036854775807"),
        ({"num_inference_steps": 2**32 + 5}, "num_inference_steps is 4294967301, must be from -2147483648 to 21474836"),
        ({"prompt": "red \udcff apple"}, "prompt is invalid at character 4, must be Unicode text"),
    ],
)
def test_values_that_cannot_be_sent_are_refused_before_they_wrap(client, fields, message):
    with pytest.raises(InvalidArgument, match=message):
        client.generate(**fields)


def test_an_unknown_field_is_a_type_error(client):
    with pytest.raises(TypeError, match="'cache_intervall' is not a field, must be one of: prompt, "):
        client.generate("red apple", cache_intervall=3)


@pytest.mark.parametrize("way", ["plain", "stream"])
def test_an_unknown_model_is_told(echo, client_class, way):
    with client_class(echo.grpc_url, "unicorn") as client, pytest.raises(GenerationError, match="unicorn"):
        client.generate("red apple") if way == "plain" else list(client.stream("red apple"))


@pytest.mark.parametrize("way", ["plain", "stream"])
@pytest.mark.parametrize("url", ["127.0.0.1:1", "no such host:8001"])
def test_no_server_is_told_in_a_sentence(client_class, way, url):
    with client_class(url) as client, pytest.raises(Unavailable, match=rf"no server answers at {url}: start one with"):
        client.generate("red apple") if way == "plain" else list(client.stream("red apple"))


@pytest.mark.parametrize("way", ["plain", "stream"])
def test_a_refused_request_is_sent_again_when_the_server_says_so(echo, client_class, way):
    """The server refuses the first two requests of a seed, and asks for a second of patience."""
    seed = 100 + 2 * (client_class is Client) + (way == "plain")  # the server counts by seed
    began = time.monotonic()
    with client_class(echo.grpc_url, "echo", retries=2) as client:
        if way == "plain":
            generation = client.generate("busy", seed=seed)
        else:
            *_, generation = client.stream("busy", seed=seed)
    assert generation.report["received"]["seed"][2] == seed
    assert 2.0 <= time.monotonic() - began < 5.0


@pytest.mark.parametrize("way", ["plain", "stream"])
def test_retries_end(echo, client_class, way):
    began = time.monotonic()
    with client_class(echo.grpc_url, "echo", retries=2) as client, pytest.raises(Unavailable, match="1 wait"):
        client.generate("full") if way == "plain" else list(client.stream("full"))
    elapsed = time.monotonic() - began
    # A stream's refusal comes after 3 steps of progress here, and what has begun is not begun again.
    assert elapsed < 0.5 if way == "stream" else elapsed >= 0.5 + 1.0


def test_no_retry_outlasts_the_time_limit(echo, client_class):
    began = time.monotonic()
    # A try that begins just before the limit is cut off by it; one that would begin after it is not sent.
    with client_class(echo.grpc_url, "echo", retries=9) as client, pytest.raises((Unavailable, DeadlineExceeded)):
        client.generate("full", timeout_s=2.0)
    assert time.monotonic() - began < 2.5  # the next pause would be at least 2 s


def test_only_a_refusal_is_sent_again(echo, client_class):
    began = time.monotonic()
    with client_class(echo.grpc_url, "echo", retries=9) as client, pytest.raises(InvalidArgument):
        client.generate("invalid")
    assert time.monotonic() - began < 0.5


def test_pauses_double_and_are_no_shorter_than_asked():
    tries = Tries(4, None)
    for least, message in ((0.5, "full"), (7.5, "full: try again in 7.5 s"), (2.0, "full"), (4.0, "full")):
        assert least <= tries.pause_s(Unavailable(message)) <= 1.5 * least
    with pytest.raises(Unavailable):
        tries.pause_s(Unavailable("full"))


@pytest.mark.parametrize("retries", [-1, 1.5, "3", True])
def test_what_is_no_number_of_retries_is_refused(client_class, retries):
    with pytest.raises(ValueError, match=f"retries is {retries!r}, must be an integer of at least 0"):
        client_class(retries=retries)


def test_cancelling_the_task_cancels_the_request_at_the_server(echo):
    async def cancel_one() -> list[int]:
        async with AsyncClient(echo.grpc_url, "echo") as client:
            begun = asyncio.Event()

            async def consume() -> None:
                async for _ in client.stream("red apple", num_inference_steps=999):
                    begun.set()

            task = asyncio.create_task(consume())
            await begun.wait()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for _ in range(50):
                await asyncio.sleep(0.1)
                *_, last = [update async for update in client.stream("red apple", num_inference_steps=1)]
                if 999 in last.report["cancelled"]:
                    break
            return last.report["cancelled"]

    assert 999 in asyncio.run(cancel_one())


def test_a_picture_is_saved_as_it_is(client, tmp_path):
    picture = client.generate("red apple")
    picture.save(tmp_path / "apple.png")
    with Image.open(tmp_path / "apple.png") as file:
        assert np.array_equal(np.asarray(file), IMAGE[0])
        assert json.loads(file.text["triton-taylorseer"])["fields"]["prompt"] == "red apple"
    with pytest.raises(ValueError, match=r"must end in \.png or another suffix of pictures: the result has 1 frames"):
        picture.save(tmp_path / "apple.mp4")


def test_a_video_is_saved_as_mp4_with_its_frames_and_rate(tmp_path):
    grey = np.repeat(np.arange(40, 200, 20, dtype=np.uint8), 32 * 48 * 3).reshape(8, 32, 48, 3)
    video = Generation(grey, {"fps": 12})
    video.save(tmp_path / "greys.mp4")
    frames = imageio.imread(tmp_path / "greys.mp4", plugin="pyav")
    assert frames.shape == grey.shape
    assert np.abs(frames.astype(int) - grey).max() <= 4, "H.264 of flat greys loses a few levels at most"
    assert imageio.immeta(tmp_path / "greys.mp4", plugin="pyav")["fps"] == 12
    with pytest.raises(ValueError, match=r"must end in \.mp4: the result has 8 frames"):
        video.save(tmp_path / "greys.png")
