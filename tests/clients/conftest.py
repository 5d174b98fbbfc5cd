"""A real Triton with throwaway models, for the tests of the client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plugin.ops.server import Server, ServerConfig, free_ports
from tests.support.throwaway import make_repository


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the models of `tests.support.throwaway`."""
    folder = tmp_path_factory.mktemp("echo")
    # Triton (24.10) holds models whose clients cancelled as their streams ended (docs/operating.md), as tests do.
    quick = ("--exit-timeout-secs=5",)
    config = ServerConfig(make_repository(folder / "models"), "127.0.0.1", *free_ports(3), extra_args=quick)
    with Server(config, log=folder / "log") as server:
        yield server
