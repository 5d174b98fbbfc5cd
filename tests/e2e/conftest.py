"""A real Triton for the tests, on free loopback ports, stopped by its process id."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import tritonclient.grpc
import tritonclient.http

from clients import Client
from plugin.ops.server import Server, ServerConfig, free_ports
from tests.support.repository import make_repository


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of this folder that fails is run once more, and the summary tells so.

    Tritonserver 24.10 has races of its own, found here one request in hundreds or thousands at a time (it loses a
    trace's context, crashes where a connection closes as its call ends), which fail a test in one run out of many.
    """
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=1))


@dataclass(frozen=True)
class Triton:
    """A running server of the tests.

    Its clients are shared and stay open: this server (24.10) can crash when a connection closes just as a plain gRPC
    call of it ends (triton-inference-server/server issue 8034, fixed in 25.04).
    """

    server: Server
    clients: dict[str, Client]
    grpc: tritonclient.grpc.InferenceServerClient
    http: tritonclient.http.InferenceServerClient

    @property
    def http_url(self) -> str:
        return self.server.http_url

    @property
    def grpc_url(self) -> str:
        return self.server.grpc_url

    def client(self, model: str = "emoji") -> AbstractContextManager[Client]:
        return nullcontext(self.clients[model])

    def metrics(self, model: str = "emoji") -> dict[str, float]:
        """The plugin's metrics of one model: name, with its other labels behind it -> value."""
        with urllib.request.urlopen(self.server.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        values = {}
        for name, labels, value in re.findall(r"^(taylorseer_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE):
            given = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if given.pop("model", None) == model:
                values[" ".join([name, *given.values()])] = float(value)
        return values

    def wait_until_idle(self, model: str = "emoji", timeout_s: float = 20.0) -> dict[str, float]:
        """The metrics once nothing is in flight, waits or holds memory; they trail the last answer by milliseconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            metrics = self.metrics(model)
            busy = [f"taylorseer_{name}" for name in ("requests_in_flight", "requests_waiting", "cache_bytes")]
            if not any(metrics[name] for name in busy):
                return metrics
            assert time.monotonic() < deadline, f"still busy after {timeout_s} s: {metrics}"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server with the shipped `emoji` model and the `faulty` one."""
    folder = tmp_path_factory.mktemp("models")
    http_port, grpc_port, metrics_port = free_ports(3)
    config = ServerConfig(make_repository(folder), "127.0.0.1", http_port, grpc_port, metrics_port)
    with Server(config, log=folder.parent / "triton.log") as server:
        grpc_client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
        http_client = tritonclient.http.InferenceServerClient(server.http_url, concurrency=8)
        clients = {model: Client(server.grpc_url, model) for model in ("emoji", "faulty")}
        yield Triton(server, clients, grpc_client, http_client)
        for client in (*clients.values(), grpc_client, http_client):  # the server waits for open connections
            client.close()
        print((folder.parent / "triton.log").read_text()[-3000:])
