"""`triton-taylorseer demo`, behind `make demo`: pictures with the cache off and on."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from plugin.cli.options import LOCALHOST
from plugin.cli.terminal import console, fail
from plugin.paths import REPOSITORY

Output = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the pictures.")]


def demo(output: Output = Path("out")) -> None:
    """Starts a server, makes ten pictures and four edits of them with the cache off and on, and compares them."""
    from clients.demo import run
    from plugin.ops.server import Server, ServerConfig, ServerError, free_ports
    from triton_taylorseer_client import GenerationError

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # the server's `with` block then stops it
    http_port, grpc_port, metrics_port = free_ports(3)
    config = ServerConfig(REPOSITORY, LOCALHOST, http_port, grpc_port, metrics_port, ("emoji",))
    status = console.status("starting tritonserver")
    try:
        with status, Server(config, on_progress=lambda stage: status.update(escape(stage))) as server:
            status.stop()
            run(server.grpc_url, output)
    except (ServerError, GenerationError, OSError) as error:
        fail(error)
