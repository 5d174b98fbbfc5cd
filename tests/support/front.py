"""A front in a thread, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from clients.openai_api import create_app
from plugin.ops.http_server import server_settings
from plugin.ops.server import free_ports


@contextmanager
def running_front(triton: str, **options: Any) -> Iterator[str]:
    """The URL of a front for a Triton's gRPC endpoint; options as of `create_app`."""
    (port,) = free_ports(1)
    server = uvicorn.Server(server_settings(create_app(triton, **options), port=port, timeout_graceful_shutdown=2))
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
