"""A real Triton with models that answer at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plugin.ops.server import Server, ServerConfig, free_ports
from tests.support.throwaway import make_repository


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cli")
    config = ServerConfig(make_repository(folder / "models"), "127.0.0.1", *free_ports(3), models=("emoji",))
    with Server(config, log=folder / "log") as server:
        yield server
