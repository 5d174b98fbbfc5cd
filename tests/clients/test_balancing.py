"""Clients of several servers behind one name: with host:port they stay with one, with dns:/// calls take turns."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from plugin.ops.server import Server, ServerConfig, free_ports
from tests.support.both_clients import CLIENTS
from tests.support.throwaway import make_repository
from triton_taylorseer_client import Client

CALLS = 12


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two servers on the same ports of two loopback addresses, as two pods have them."""
    ports = free_ports(3)
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(f"server{number}") for number in range(2)]
        yield [
            stack.enter_context(
                Server(
                    ServerConfig(make_repository(folder / "models"), f"127.0.0.{1 + number}", *ports), folder / "log"
                )
            )
            for number, folder in enumerate(folders)
        ]


def url_of(servers: list[Server]) -> str:
    """What a headless service's name is resolved to."""
    return "ipv4:" + ",".join(server.grpc_url for server in servers)


def settled(servers: list[Server], model: str) -> list[int]:
    """How many calls each server has answered; what Triton counts trails its answers by a moment."""
    before, counts = None, [answered(server, model) for server in servers]
    while counts != before:
        time.sleep(0.1)
        before, counts = counts, [answered(server, model) for server in servers]
    return counts


def answered(server: Server, model: str) -> int:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    return int(
        re.findall(rf'^nv_inference_request_success{{model="{model}",version="1"}} (\d+)', text, re.MULTILINE)[0]
    )


@pytest.mark.parametrize("way", ["plain", "stream"])
@pytest.mark.parametrize("kind", CLIENTS)
def test_calls_take_turns_between_the_servers_of_a_name(servers: list[Server], kind: str, way: str):
    model = "echo" if way == "plain" else "echo_stream"

    with CLIENTS[kind](url_of(servers), "echo") as client:

        def call() -> None:
            client.generate("star") if way == "plain" else list(client.stream("star", num_inference_steps=1))

        before, deadline = settled(servers, model), time.monotonic() + 10
        while not all(
            now > then for now, then in zip(settled(servers, model), before, strict=True)
        ):  # until both are connected
            assert time.monotonic() < deadline
            call()
        before = settled(servers, model)
        for _ in range(CALLS):
            call()
        shares = [now - then for now, then in zip(settled(servers, model), before, strict=True)]
    assert sum(shares) == CALLS
    # A stream of `Client` has a channel of its own, whose first turn is drawn at random: all twelve go to one server in
    # 1 of 2048 runs.
    at_random = kind == "threads" and way == "stream"
    assert min(shares) > 0 if at_random else shares == [CALLS // 2] * 2


def test_with_host_and_port_one_connection_carries_all(servers: list[Server]):
    before = settled(servers, "echo")
    with Client(servers[1].grpc_url, "echo") as client:
        for _ in range(3):
            client.generate("star")
    assert [now - then for now, then in zip(settled(servers, "echo"), before, strict=True)] == [0, 3]


def test_it_goes_on_with_the_server_that_is_left(servers: list[Server]):
    (nobody,) = free_ports(1)
    url = f"ipv4:127.0.0.1:{nobody},{servers[0].grpc_url}"
    with Client(url, "echo") as client:
        assert [client.generate("star").report["num_steps"] for _ in range(4)] == [10] * 4
