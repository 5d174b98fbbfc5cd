"""Worker processes that are killed: `serve` loads their models again within half a minute."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.support.commands import COMMAND
from tests.support.metrics import of_plugin
from tests.support.pings import ping
from tests.support.repository import copy_model
from tests.support.throwaway import write_echo
from tests.support.waiting import wait_for
from tests.support.watched import Serving, watched
from triton_taylorseer_client import Client, Generation, GenerationError, Progress, Unavailable


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`serve` with the model `killed`, and `neighbour`, which only answers."""
    folder = tmp_path_factory.mktemp("watched") / "models"
    folder.mkdir()
    copy_model(folder, "killed")
    write_echo(folder, "neighbour")
    # A worker that died keeps the server from ending by itself before its time is up.
    with watched(folder, "--exit-timeout-secs=3") as each:
        yield each


def test_two_processes_serve_a_model_and_sixty_four_plain_calls_at_once(serving: Serving) -> None:
    with Client(serving.url, "killed") as client:
        _wait_until_served(client, 120)
    with ThreadPoolExecutor(64) as pool:
        ends = [*pool.map(partial(_end_of_call, serving), range(64), [6] * 64)]
    assert [type(end) for end in ends] == [Generation] * 64, ends
    for instance in ("killed_0", "killed_stream_0"):
        assert len(serving.workers(instance)) == 1


def test_plain_calls_in_flight_are_answered_when_the_process_of_the_stream_model_dies(
    serving: Serving,
) -> None:
    """Triton (24.10) never answers them: `killed` does, and goes on with the process that comes next. The model beside
    it serves meanwhile."""
    count = 8
    with (
        Client(serving.url, "killed") as client,
        Client(serving.url, "neighbour") as neighbour,
        ThreadPoolExecutor(count) as pool,
    ):
        _wait_until_served(client, 120)
        assert ping(serving.url, "killed_stream") is None
        before = {each.pid for each in serving.workers("killed_0")}
        calls = [pool.submit(_end_of_call, serving, number, 1000) for number in range(count)]
        wait_for(lambda: _in_flight(serving) == count, "all calls are in flight")
        serving.worker("killed_stream_0").kill()
        began = time.monotonic()
        ends = [call.result(timeout=30) for call in calls]
        seconds = time.monotonic() - began
        assert [type(end) for end in ends] == [Unavailable] * count, ends
        assert seconds < 5
        assert _health(serving) == 1, "health says so while the model is away"
        assert neighbour.generate("red apple, 3d", num_inference_steps=2).report["num_steps"] == 10
        wait_for(lambda: serving.said("killed_stream does not answer"), "the watch has noticed", 30)
        assert _wait_until_served(client, 60) < 45
        assert _health(serving) == 0
        assert [*pool.map(partial(_end_of_call, serving), range(count), [2] * count)]
        assert {each.pid for each in serving.workers("killed_0")} == before, "the plain model has stayed"


def test_a_killed_process_of_plain_calls_is_replaced_while_a_stream_goes_on(serving: Serving) -> None:
    with Client(serving.url, "killed") as client, Client(serving.url, "killed") as other:
        _wait_until_served(client, 120)
        updates = other.stream("red apple, 3d", num_inference_steps=1000, cache_interval=1)
        assert isinstance(next(updates), Progress)
        serving.worker("killed_0").kill()
        wait_for(lambda: serving.said("killed does not answer"), "the watch has noticed", 30)
        _wait_until_served(client, 30)
        assert isinstance([*updates][-1], Generation)


def test_a_process_that_is_killed_in_the_middle_of_plain_calls_ends_with_a_restart(serving: Serving) -> None:
    """Triton 24.10 waits forever to hand the dead process its next response, in the thread that serves the stream
    model's responses: only a restart of the server ends what is in flight there."""
    with Client(serving.url, "killed") as client, ThreadPoolExecutor(4) as pool:
        _wait_until_served(client, 60)
        calls = [pool.submit(_end_of_call, serving, number, 1000) for number in range(4)]
        wait_for(lambda: _in_flight(serving) == 4, "all calls are in flight")
        serving.worker("killed_0").kill()
        ends = [call.result(timeout=90) for call in calls]
        assert all(isinstance(end, GenerationError) for end in ends), ends
        assert serving.said("killed and killed_stream do not answer")
        _wait_until_served(client, 120)


def _end_of_call(serving: Serving, seed: int, steps: int) -> Generation | GenerationError:
    """What a plain call ends with."""
    with Client(serving.url, "killed") as client:
        try:
            return client.generate("red apple, 3d", seed=seed, num_inference_steps=steps, cache_interval=1)
        except GenerationError as error:
            return error


def _in_flight(serving: Serving) -> float:
    found = of_plugin(serving.metrics_url, "killed")
    return found["taylorseer_requests_in_flight"] + found["taylorseer_requests_waiting"]


def _health(serving: Serving) -> int:
    command = [COMMAND, "health", "--url", serving.url, "--model", "killed"]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def _is_served(client: Client) -> bool:
    try:
        client.generate("red apple, 3d", num_inference_steps=2, timeout_s=5)
        return True
    except GenerationError:
        return False


def _wait_until_served(client: Client, timeout_s: float) -> float:
    began = time.monotonic()
    while not _is_served(client):
        assert time.monotonic() - began < timeout_s, "not served in time"
        time.sleep(0.2)
    return time.monotonic() - began
