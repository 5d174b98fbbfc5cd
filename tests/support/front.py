"""A front in a thread, for tests; and any other application."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from clients.openai_api import create_app
from plugin.ops.http_server import server_settings
from plugin.ops.server import free_ports


@contextmanager
def running_front(triton: str, **options: Any) -> Iterator[str]:
    """The URL of a front for a Triton's gRPC endpoint; options as of `create_app`."""
    with running_app(create_app(triton, **options)) as url:
        yield url


@contextmanager
def running_app(app: ASGIApp) -> Iterator[str]:
    """The URL of an application."""
    (port,) = free_ports(1)
    server = uvicorn.Server(server_settings(app, port=port, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the front has ended"
        assert time.monotonic() < deadline, "the front must start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
