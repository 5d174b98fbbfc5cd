"""Worker processes that are killed: `serve` loads their models again within half a minute."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from clients import Client, Generation, GenerationError, Progress
from plugin.ops.server import free_ports
from plugin.ops.watch import ping
from tests.support.commands import COMMAND, port_options
from tests.support.repository import copy_model


@dataclass(frozen=True)
class Serving:
    url: str
    process: psutil.Process
    log: Path

    def worker(self, instance: str) -> psutil.Process:
        """The living process of an instance of a model, `killed_0_1` for example, once there is one; of several the
        latest."""
        found: list[psutil.Process] = []
        began = time.monotonic()
        while not found:
            assert time.monotonic() - began < 60, f"{instance} has no process"
            with suppress(psutil.NoSuchProcess):
                found = [
                    each
                    for each in self.process.children(recursive=True)
                    if "stub" in each.name() and any(part.startswith(instance) for part in each.cmdline())
                ]
        return max(found, key=psutil.Process.create_time)

    def said(self, words: str) -> bool:
        """Whether `serve` has said this; its lines are wrapped at spaces."""
        return words in " ".join(self.log.read_text().split())


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`serve` with the models `killed` and `neighbour`."""
    folder = tmp_path_factory.mktemp("watched") / "models"
    folder.mkdir()
    for name in ("killed", "neighbour"):
        copy_model(folder, name)
    http, grpc, metrics = free_ports(3)
    ports = port_options(http, grpc, metrics)
    # A worker that died keeps the server from ending by itself before its time is up.
    arguments = [COMMAND, "serve", "--model-repository", str(folder), *ports, "--", "--exit-timeout-secs=3"]
    log = folder.parent / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file)
    try:
        yield Serving(f"127.0.0.1:{grpc}", psutil.Process(process.pid), log)
    finally:
        process.terminate()
        process.wait(60)


def test_a_killed_worker_is_replaced_while_its_neighbour_serves(serving: Serving) -> None:
    with Client(serving.url, "killed") as client, Client(serving.url, "neighbour") as neighbour:
        _wait_until_served(client, 120)
        assert ping(serving.url, "killed_stream") is None
        serving.worker("killed_stream_0").kill()
        assert neighbour.generate("red apple, 3d", num_inference_steps=2).image.shape == (1, 64, 64, 3)
        seconds = _wait_until_served(client, 30)
        assert seconds < 30
        assert neighbour.generate("red apple, 3d", num_inference_steps=2).image.shape == (1, 64, 64, 3)
    assert serving.said("killed_stream does not answer")


def test_a_killed_worker_of_plain_calls_is_replaced_while_a_request_goes_on(serving: Serving) -> None:
    with Client(serving.url, "killed") as client, Client(serving.url, "killed") as other:
        _wait_until_served(client, 120)
        updates = other.stream("red apple, 3d", num_inference_steps=1000, cache_interval=1)
        assert isinstance(next(updates), Progress)
        serving.worker("killed_0_1").kill()
        began = time.monotonic()
        while not serving.said("killed lacks 1 of 4 processes"):
            assert time.monotonic() - began < 30, "nobody has noticed"
            time.sleep(0.2)
        assert serving.worker("killed_0_1").is_running()
        _wait_until_all_are_served(client, 30)
        assert isinstance([*updates][-1], Generation)


def test_a_worker_that_is_killed_in_the_middle_of_a_plain_call_is_replaced_with_the_stream_model(
    serving: Serving,
) -> None:
    """Triton 24.10 waits for ever to hand the dead process its next response, in the thread that serves the stream
    model's responses: that one does not answer either and is loaded again."""

    def call(number: int) -> str:
        with Client(serving.url, "killed") as each:
            try:
                each.generate("red apple, 3d", num_inference_steps=300, cache_interval=1, seed=number, timeout_s=20)
            except GenerationError as error:
                return str(error)
            return "served"

    with Client(serving.url, "killed") as client, ThreadPoolExecutor(4) as pool:
        _wait_until_all_are_served(client, 60)
        calls = [pool.submit(call, number) for number in range(4)]  # one for each instance
        time.sleep(1)
        assert not any(call.done() for call in calls)
        serving.worker("killed_0_1").kill()
        assert "is not healthy" in next(as_completed(calls)).result(), "the one whose process is gone is told at once"
        _wait_until_all_are_served(client, 120)


def _is_served(client: Client) -> bool:
    try:
        client.generate("red apple, 3d", num_inference_steps=2, timeout_s=5)
        return True
    except GenerationError:
        return False


def _wait_until_all_are_served(client: Client, timeout_s: float) -> None:
    began = time.monotonic()
    while not all(_is_served(client) for _ in range(8)):  # twice as many as there are instances
        assert time.monotonic() - began < timeout_s, "calls still fail"


def _wait_until_served(client: Client, timeout_s: float) -> float:
    began = time.monotonic()
    while not _is_served(client):
        assert time.monotonic() - began < timeout_s, "not served in time"
        time.sleep(0.2)
    return time.monotonic() - began
