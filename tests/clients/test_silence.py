"""Streams that fall silent end; signs of life keep them, and are no progress."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from plugin import tensors
from tests.support.both_clients import CLIENTS
from tests.support.commands import run
from tests.support.fake_triton import Call, Picture, Step, fake_triton
from triton_taylorseer_client import Generation, Progress, Unavailable
from triton_taylorseer_client.messages import STREAM_PARAMETERS
from triton_taylorseer_client.patience import Silence

SILENT = r"emoji_stream has not been heard from for 0\.3 s, its process may have ended: try again"
DONE = Picture({"seed": 3, "num_steps": 8, "full_steps": [0], "total_s": 0.1})


@pytest.fixture(params=list(CLIENTS))
def client_class(request: pytest.FixtureRequest) -> Any:
    return CLIENTS[request.param]


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Starts a server that sends some updates; a number is a pause in seconds, None one that never ends."""
    over, servers = threading.Event(), []

    def start(*updates: Any) -> str:
        def behaviour(call: Call) -> Iterator[Any]:
            for update in updates:
                if update is None or isinstance(update, float):
                    over.wait(update)
                else:
                    yield update

        servers.append(fake_triton(behaviour))
        return servers[-1].__enter__()

    yield start
    over.set()
    for each in servers:
        each.__exit__(None, None, None)


def test_a_stream_asks_for_signs_of_life_and_typed_errors(client_class):
    assert tensors.HEARTBEAT_PARAMETER in STREAM_PARAMETERS
    assert tensors.ERROR_REPORT_PARAMETER in STREAM_PARAMETERS

    def behaviour(call: Call) -> Iterator[Any]:
        yield Picture({"parameters": sorted(call.parameters)})

    with fake_triton(behaviour) as url, client_class(url) as client:
        (generation,) = client.stream("star")
    assert set(STREAM_PARAMETERS) <= set(generation.report["parameters"])


@pytest.mark.parametrize("heard", [[Step(0, 8)], [Step(0, 8), Step(1, 8), Step(2, 8)], [Step(1, 8)]])
def test_a_stream_that_falls_silent_ends(server, client_class, heard):
    began = time.monotonic()
    with client_class(server(*heard, None), idle_timeout_s=0.3) as client:
        stream = client.stream("star")
        for each in filter(lambda each: each.step, heard):
            assert next(stream) == Progress(each.step, 8)
        with pytest.raises(Unavailable, match=SILENT):
            next(stream)
    assert time.monotonic() - began < 5


def test_the_place_in_the_queue_is_progress(server, client_class):
    places = [Step(0, 8, queue_position=position) for position in (2, 2, 1, 0, 0)]
    with client_class(server(*places, Step(1, 8), DONE)) as client:
        *heard, _ = client.stream("star")
    assert heard == [*(Progress(0, 8, queue_position=position) for position in (2, 1, 0)), Progress(1, 8)]


def test_a_call_may_have_a_limit_of_its_own(server, client_class):
    with client_class(server(Step(0, 8), None)) as client, pytest.raises(Unavailable, match=SILENT):
        list(client.stream("star", idle_timeout_s=0.3))
    with client_class(server(Step(0, 8), 1.0, DONE), idle_timeout_s=0.3) as client:
        assert isinstance([*client.stream("star", idle_timeout_s=math.inf)][-1], Generation)
    with client_class(server(Step(0, 8), 1.0, DONE), idle_timeout_s=None) as client:
        assert isinstance([*client.stream("star")][-1], Generation)


def test_a_server_that_is_silent_from_the_beginning_has_ten_times_as_long(server, client_class):
    """A request with pictures takes a while to arrive."""
    with client_class(server(1.0, Step(1, 8), DONE), idle_timeout_s=0.3) as client:
        assert next(client.stream("star")) == Progress(1, 8)
    silent = r"emoji_stream has not been heard from for 1 s, its process may have ended: try again"
    with client_class(server(None), idle_timeout_s=0.1) as client, pytest.raises(Unavailable, match=silent):
        list(client.stream("star"))


def test_signs_of_life_keep_a_stream_and_are_no_progress(server, client_class):
    preview = np.zeros((4, 6, 3), np.uint8)
    waiting, working = [Step(0, 8), 0.2] * 4, [Step(1, 8), 0.2] * 4
    with client_class(server(*waiting, *working, Step(1, 8, preview), Step(2, 8), DONE), idle_timeout_s=0.5) as client:
        *updates, generation = client.stream("star")
    assert [(update.step, update.preview is not None) for update in updates] == [(1, False), (1, True), (2, False)]
    assert isinstance(generation, Generation)


def test_the_result_may_take_longer_than_a_sign_of_life(server, client_class):
    with client_class(server(Step(8, 8), 1.0, DONE), idle_timeout_s=0.3) as client:
        assert isinstance([*client.stream("star")][-1], Generation)
    silence = Silence("emoji", 30.0)
    assert silence.limit_s == 300.0
    silence.is_news(Progress(7, 8))
    assert silence.limit_s == 30.0
    silence.is_news(Progress(8, 8))
    assert silence.limit_s == 300.0


def test_a_result_whose_end_never_comes_is_handed_on(server, client_class):
    with client_class(server(Step(1, 8), DONE, None), idle_timeout_s=0.3) as client:
        assert isinstance([*client.stream("star")][-1], Generation)


def test_a_request_that_was_lost_in_the_queue_is_sent_again(client_class):
    calls, over = [], threading.Event()

    def behaviour(call: Call) -> Iterator[Any]:
        calls.append(call)
        yield Step(0, 8)
        if len(calls) == 1:
            over.wait()
        yield DONE

    with fake_triton(behaviour) as url, client_class(url, retries=1, idle_timeout_s=0.3) as client:
        assert isinstance([*client.stream("star")][-1], Generation)
        over.set()
    assert len(calls) == 2


@pytest.mark.parametrize("limit", [-1.0, math.nan, "30", True])
def test_what_is_no_number_of_seconds_is_refused(client_class, limit):
    for make in (
        lambda: client_class(idle_timeout_s=limit),
        lambda: client_class().generate("star", timeout_s=limit),
        lambda: list(client_class().stream("star", timeout_s=limit)),
        lambda: list(client_class().stream("star", idle_timeout_s=limit)),
    ):
        with pytest.raises(ValueError, match=r"timeout_s is .*, must be a number of seconds of at least 0, or None"):
            make()


@pytest.mark.parametrize("option", [[], ["--batch"]])
def test_generate_has_a_time_limit(server, tmp_path, option):
    url = server(Step(0, 8), None)
    began = time.monotonic()
    if option:
        (tmp_path / "prompts.txt").write_text("star\ncactus\n")
        option = ["--batch", tmp_path / "prompts.txt", "-o", tmp_path / "pictures"]
    else:
        option = ["star", "-o", tmp_path / "a.png"]
    code, output = run("generate", *option, "--url", url, "--timeout", 0.5)
    assert code == 1
    assert f"{url} gave no picture within the client's time limit" in output
    assert time.monotonic() - began < 5
