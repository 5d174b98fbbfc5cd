"""Any request, over every way into a server: it is answered in time, and the server goes on.

`make test` tries the same few hundred each time. `make fuzz` tries others for FUZZ_SECONDS, and prints how many.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from plugin.ops.server import Server, ServerConfig, free_ports
from tests.support import metrics
from tests.support.front import running_front
from tests.support.fuzz.ways import Fault, Way, front_way, generate_way, grpc_way, infer_way
from tests.support.held import held_by, processes_of
from tests.support.repository import copy_model
from tests.support.waiting import wait_for
from triton_taylorseer_client import Client

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
EXAMPLES = 60  # of one way with one seed
KNOWN_EVERY = 25  # examples, after which a picture is compared
KNOWN: dict[str, Any] = {"prompt": "red apple, 3d", "seed": 7, "num_inference_steps": 3}
GROWTH_BYTES = 250_000_000  # what Triton and torch keep for later of what they have once needed


@dataclass
class Target:
    """The server and the front that are tried.

    Attributes:
        picture: of the known request, as it was at first.
        tried: examples, by way.
        served: those of them that got a picture.
    """

    server: Server
    client: Client
    ways: list[Way]
    picture: np.ndarray
    tried: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)

    def picture_now(self) -> np.ndarray:
        return self.client.generate(**KNOWN, timeout_s=60).image


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fuzzed") / "models"
    folder.mkdir()
    copy_model(
        folder, "swan", num_inference_steps="2", max_steps="20", max_size="64", max_in_flight="4", fixed_batch="1"
    )
    with (
        Server(ServerConfig(folder, "127.0.0.1", *free_ports(3)), log=folder.parent / "log") as server,
        Client(server.grpc_url, "swan") as client,
        running_front(server.grpc_url) as front,
    ):
        ways = [
            grpc_way(server.grpc_url),
            infer_way(server.http_url),
            generate_way(server.http_url),
            front_way(front.removeprefix("http://")),
        ]
        yield Target(server, client, ways, client.generate(**KNOWN).image)


def try_way(target: Target, way: Way, number: int) -> None:
    """Tries examples of one way. What fails is printed as it was sent: it cannot be made smaller with a dead server.

    Raises:
        Fault: the server died, hung, or answered what it must not answer.
    """
    alive = {each.pid for each in processes_of(target.server)}

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(way.requests)
    def example(request: Any) -> None:
        target.tried[way.name] += 1
        target.served[way.name] += way.send(request)
        if target.server.process.poll() is not None or {each.pid for each in processes_of(target.server)} != alive:
            raise Fault("a process of the server has died")
        if target.tried[way.name] % KNOWN_EVERY == 0 and not np.array_equal(target.picture_now(), target.picture):
            raise Fault("the known request has another picture")

    try:
        example()
    except BaseException:
        print(f"\n{way.name} failed with FUZZ_SEED={number}, after {dict(target.tried)} examples")
        raise


@pytest.mark.parametrize("which", range(4), ids=["grpc", "infer", "generate", "front"])
def test_any_request_is_answered_and_the_server_goes_on(target: Target, which: int) -> None:
    way = target.ways[which]
    try_way(target, way, number=1)
    assert target.served[way.name] >= target.tried[way.name] / 5, "else the model has hardly been reached"
    assert np.array_equal(target.picture_now(), target.picture)


@pytest.mark.skipif(not SECONDS, reason="FUZZ_SECONDS is not set: `make fuzz` sets it")
def test_other_requests_for_as_long_as_is_wanted(target: Target) -> None:
    ends = time.monotonic() + SECONDS
    number = int(os.environ.get("FUZZ_SEED", time.time_ns() % 10**9))
    print(f"\nseeds from {number} on")
    while time.monotonic() < ends:
        for way in target.ways:
            try_way(target, way, number)
        number += 1
    tried, served = sum(target.tried.values()), sum(target.served.values())
    print(f"{tried} examples, {served} of them served, 0 crashes, 0 hangs; last seed {number - 1}")
    print(f"tried {dict(target.tried)}, served {dict(target.served)}")


def test_nothing_is_left_in_flight_and_little_memory_is_kept(target: Target) -> None:
    def is_idle() -> bool:
        found = metrics.of_plugin(target.server.metrics_url, "swan")
        names = ("taylorseer_requests_in_flight", "taylorseer_requests_waiting", "taylorseer_cache_bytes")
        return not any(value for name, value in found.items() if name.startswith(names))

    wait_for(is_idle, "nothing is in flight", 30)
    before = held_by(target.server)
    for way in target.ways:
        try_way(target, way, number=2)
    wait_for(is_idle, "nothing is in flight", 30)
    after = held_by(target.server)
    assert after["processes"] == before["processes"]
    assert after["memory"] < before["memory"] + GROWTH_BYTES
    assert after["shared memory"] <= before["shared memory"] + 8_000_000
    for name in ("threads", "files"):
        assert after[name] <= before[name] + 16, name
