"""`triton-taylorseer serve`: Triton in the foreground."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from plugin.cli.options import LOCALHOST, Host, ModelRepository
from plugin.cli.terminal import console, fail, say
from plugin.paths import REPOSITORY

if TYPE_CHECKING:
    from plugin.ops.server import ServerConfig

Models = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A model to serve; repeatable. Default: all that need no download."),
]


def serve(
    context: typer.Context,
    model_repository: ModelRepository = REPOSITORY,
    host: Host = LOCALHOST,
    http_port: Annotated[int, typer.Option(metavar="PORT", help="Port of Triton's HTTP endpoint.")] = 8000,
    grpc_port: Annotated[int, typer.Option(metavar="PORT", help="Port of Triton's gRPC endpoint.")] = 8001,
    metrics_port: Annotated[int, typer.Option(metavar="PORT", help="Port of the metrics.")] = 8002,
    model: Models = None,
) -> None:
    """Starts Triton in the foreground. What follows -- goes to tritonserver.

    The ports are opened by a guard, which checks every request before Triton sees it. --host :: takes IPv4 and IPv6.
    -- --allow-http=false, --allow-grpc=false and --allow-metrics=false leave a port closed; -- --grpc-use-ssl=true with
    --grpc-server-cert and --grpc-server-key puts TLS on gRPC.

    Loading and unloading models over the network needs a key: the environment's TAYLORSEER_CONTROL_KEY. Without it the
    key is random and not shown, so that only this command itself can do so.

    Examples:

      triton-taylorseer serve --model emoji
      triton-taylorseer serve --model flux_dev --host 0.0.0.0 -- --log-verbose=1
    """
    from plugin.ops import control
    from plugin.ops.foreground import run_foreground
    from plugin.ops.server import ServerConfig, ServerError

    config = ServerConfig(
        model_repository.resolve(),
        host,
        http_port,
        grpc_port,
        metrics_port,
        tuple(model or ()),
        tuple(context.args),
        control_key=os.environ.get(control.ENVIRONMENT) or control.new_key(),
    )
    _announce(config)
    try:
        raise typer.Exit(run_foreground(config, partial(_ready, config), say))
    except ServerError as error:
        fail(error)


def _announce(config: ServerConfig) -> None:
    from plugin.repository import models_to_download

    say(f"loading the models of {config.model_repository} …")
    if not config.models:
        for name, hub_id in models_to_download(config.model_repository, os.environ).items():
            say(f"{name} is left out: {hub_id} is not on this machine, `--model {name}` downloads it")


def _ready(config: ServerConfig) -> None:
    from plugin.ops.guard import address

    names = {"http": "HTTP", "grpc": "gRPC", "metrics": "metrics"}
    ports = (f"{names[name]} {address(config.host, port)}" for name, port in config.open_ports.items())
    # Brackets are of IPv6, not rich's markup.
    console.print("[bold green]ready[/]:", escape(f"{', '.join(ports)}; Ctrl-C stops"), highlight=False, soft_wrap=True)
