"""A model whose engine calls two processes share, through a real Triton: pictures, and what happens to requests and
processes when one of them is killed or stopped, a request is cancelled, or the server is stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.support.repository import copy_model
from tests.support.waiting import wait_for
from tests.support.watched import Serving, watched
from triton_taylorseer_client import Client, Generation, GenerationError, Progress, Unavailable

REQUESTS = [
    {"prompt": prompt, "seed": seed, "num_inference_steps": 12, "cache_interval": interval, "height": height}
    for seed, (prompt, interval, height) in enumerate(
        [("red apple, 3d", 1, 64), ("pizza, 3d", 4, 64), ("cat", 1, 40), ("swan", 4, 40)] * 2
    )
]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`serve` with `shared`, of two processes that share tokens, and `alone`, the same with the torch engine."""
    folder = tmp_path_factory.mktemp("parallel") / "models"
    folder.mkdir()
    copy_model(folder, "shared", engine="parallel", engine_lanes="1", sequence_parallel="2", engine_threads="1")
    copy_model(folder, "alone", engine="torch", engine_lanes="1")
    with watched(folder, "--exit-timeout-secs=3") as each:
        yield each


def others(serving: Serving) -> list[psutil.Process]:
    """The processes that the one of the model has started."""
    found = []
    for each in serving.process.children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "plugin.engines.parallel.worker" in each.cmdline():
                found.append(each)
    return found


def served(serving: Serving, timeout_s: float = 120.0) -> None:
    """Returns once the model makes a picture, with the one further process that it has."""

    def is_served() -> bool:
        with suppress(GenerationError), Client(serving.url, "shared") as client:
            return isinstance(client.generate("cat", num_inference_steps=2), Generation)
        return False

    wait_for(is_served, "shared serves", timeout_s, 1.0)
    assert len(others(serving)) == 1


def at_once(serving: Serving, model: str, requests: list[dict[str, Any]]) -> list[Generation | GenerationError]:
    """What becomes of requests that are made at once."""

    def ask(request: dict[str, Any]) -> Generation | GenerationError:
        try:
            with Client(serving.url, model) as client:
                return client.generate(**request)
        except GenerationError as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return [*pool.map(ask, requests)]


def test_eight_mixed_requests_are_those_of_the_engine_alone(serving: Serving) -> None:
    """Two levels of 255: matrices of other heights are summed in another order, and rounded to a level at the end."""
    served(serving)
    expected, shared = (at_once(serving, model, REQUESTS) for model in ("alone", "shared"))
    for one, other in zip(expected, shared, strict=True):
        assert isinstance(one, Generation)
        assert isinstance(other, Generation)
        assert other.report["engine"] == "parallel"
        assert np.abs(one.image.astype(int) - other.image).max() <= 2


def test_a_cancelled_request_leaves_the_processes_as_they_are(serving: Serving) -> None:
    """Ten in a row, each in the middle of a step; the next request is served by the same processes."""
    served(serving)
    before = {each.pid for each in others(serving)}
    for number in range(10):
        with Client(serving.url, "shared") as client:
            updates = client.stream("red apple, 3d", seed=number, num_inference_steps=200, cache_interval=1)
            assert isinstance(next(updates), Progress)
            updates.close()
    served(serving, 30)
    assert {each.pid for each in others(serving)} == before


@pytest.mark.parametrize("how", ["kill", "suspend"])
def test_requests_are_answered_and_the_model_is_loaded_again_when_a_process_is_lost(serving: Serving, how: str) -> None:
    """A killed one is noticed at once, one that hangs after 20 s without a sign of life."""
    served(serving)
    (lost,), worker = others(serving), serving.worker("shared_stream_0")
    long = [{"prompt": "cat", "seed": seed, "num_inference_steps": 1000, "cache_interval": 1} for seed in range(4)]
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(at_once, serving, "shared", long)
        time.sleep(2)
        getattr(lost, how)()
        began = time.monotonic()
        ends = asking.result(timeout=60)
    assert time.monotonic() - began < (10 if how == "kill" else 35)
    assert [type(end) for end in ends] == [Unavailable] * 4, ends
    assert any("process 1 of the engine, on cpu, " in str(end) for end in ends)
    served(serving)
    assert serving.worker("shared_stream_0").pid != worker.pid
    wait_for(lambda: not lost.is_running() or lost.status() == psutil.STATUS_ZOMBIE, "the lost process has ended", 30)


def test_the_process_ends_with_a_model_that_is_killed(serving: Serving) -> None:
    served(serving)
    (other,) = others(serving)
    serving.worker("shared_stream_0").kill()
    wait_for(lambda: not other.is_running(), "the further process has ended", 10)
    served(serving)


def test_sigterm_in_the_middle_of_a_call_leaves_no_process_and_no_memory(serving: Serving) -> None:
    """Ends the fixture."""
    served(serving)
    shared_memory = {*Path("/dev/shm").iterdir()}
    processes = [serving.process, *serving.process.children(recursive=True)]
    with Client(serving.url, "shared") as client:
        updates = client.stream("red apple, 3d", num_inference_steps=1000, cache_interval=1)
        assert isinstance(next(updates), Progress)
        serving.process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert {*Path("/dev/shm").iterdir()} <= shared_memory
