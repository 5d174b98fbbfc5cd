"""A real Triton for the tests, on free loopback ports, stopped by its process id."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc
import tritonclient.http

from plugin.ops.control import grpc_headers
from plugin.ops.server import Server, ServerConfig, free_ports
from tests.support import metrics
from tests.support.waiting import wait_for
from triton_taylorseer_client import Client

_BUSY = tuple(f"taylorseer_{name}" for name in ("requests_in_flight", "requests_waiting", "cache_bytes"))


@dataclass
class Triton:
    """A running server of the tests.

    Its clients are shared and stay open: this server (24.10) can crash when a connection closes just as a plain gRPC
    call of it ends (triton-inference-server/server issue 8034, fixed in 25.04).
    """

    server: Server

    def __post_init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._lock = threading.Lock()

    @property
    def http_url(self) -> str:
        return self.server.http_url

    @property
    def grpc_url(self) -> str:
        return self.server.grpc_url

    @property
    def repository(self) -> Path:
        return self.server.config.model_repository

    @property
    def key(self) -> dict[str, str]:
        """The headers that control over gRPC takes."""
        return grpc_headers(self.server.config.control_key)

    @cached_property
    def grpc(self) -> tritonclient.grpc.InferenceServerClient:
        return tritonclient.grpc.InferenceServerClient(self.grpc_url)

    @cached_property
    def http(self) -> tritonclient.http.InferenceServerClient:
        return tritonclient.http.InferenceServerClient(self.http_url, concurrency=8)

    def client(self, model: str = "emoji") -> AbstractContextManager[Client]:
        """The client of a model, which stays open beyond the block."""
        with self._lock:
            if model not in self._clients:
                self._clients[model] = Client(self.grpc_url, model)
        return nullcontext(self._clients[model])

    def load(self, *models: str) -> None:
        """Loads models and their stream models, side by side."""
        names = [name for model in models for name in (f"{model}_stream", model)]
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: self.grpc.load_model(name, headers=self.key, client_timeout=120), names))

    def close(self) -> None:
        """Closes all clients: the server waits for open connections when it ends."""
        for client in (*self._clients.values(), *(self.__dict__.get(name) for name in ("grpc", "http"))):
            if client is not None:
                client.close()

    def process_of(self, instance: str) -> psutil.Process:
        """The process of an instance of a model, whose command line has its name."""
        assert self.server.process is not None
        children = psutil.Process(self.server.process.pid).children(recursive=True)
        return next(each for each in children if any(instance in part for part in each.cmdline()))

    def metrics(self, model: str = "emoji") -> dict[str, float]:
        """The plugin's metrics of one model: name, with its other labels behind it -> value."""
        return metrics.of_plugin(self.server.metrics_url, model)

    def wait_until_idle(self, model: str = "emoji", timeout_s: float = 20.0) -> dict[str, float]:
        """The metrics once nothing is in flight, waits or holds memory, in no instance; they trail the last answer by
        milliseconds."""
        found: dict[str, float] = {}

        def is_idle() -> bool:
            found.clear()
            found.update(self.metrics(model))
            return not any(value for name, value in found.items() if name.startswith(_BUSY))

        wait_for(is_idle, f"{model} is idle", timeout_s)
        return found


@contextmanager
def running(repository: Path, *models: str, host: str = "127.0.0.1", **options: Any) -> Iterator[Triton]:
    """A server of all models of a repository, or of those named; its log lies beside the repository.

    Args:
        repository: the folder of models.
        models: names without `_stream`.
        host: a loopback address.
        options: further ones of `ServerConfig`.
    """
    config = ServerConfig(repository, host, *free_ports(3), models=models, **options)
    log = repository.parent / f"{repository.name}.log"
    with Server(config, log=log) as server:
        triton = Triton(server)
        try:
            yield triton
        finally:
            triton.close()
            print(log.read_text(errors="replace")[-3000:])
