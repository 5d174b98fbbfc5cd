"""`triton-taylorseer front`: OpenAI's API for pictures and a web page."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from plugin.cli.options import LOCALHOST, TRITON, Ca, Host, Url
from plugin.cli.terminal import fail, say

if TYPE_CHECKING:
    from starlette.types import ASGIApp

Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:SIZE]",
        help="Model of requests that name none, and a size as 64x64 in place of those that it refuses. "
        "Default: the first one that is ready.",
    ),
]
Alias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODEL[:SIZE]",
        help="Another name of a model, for clients that send a name of their own, and a size as 64x64 in place of "
        "those that it refuses. May be repeated.",
    ),
]
FetchFrom = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        help="Where pictures may be fetched from: what their addresses must begin with. May be repeated. "
        "Default: nowhere.",
    ),
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Whose pages may use it from a browser; * for all. May be repeated."),
]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Longest time that a request may take. Default: no limit.")
]


def front(
    triton: Url = TRITON,
    host: Host = LOCALHOST,
    port: Annotated[int, typer.Option(metavar="PORT", help="Port to listen on.")] = 9000,
    model: Model = None,
    timeout: Timeout = None,
    alias: Alias = None,
    fetch_from: FetchFrom = None,
    cors_origin: CorsOrigin = None,
    ca: Ca = None,
) -> None:
    """Serves OpenAI's API, the part of it that makes pictures, and a web page in front of a running Triton.

    With TAYLORSEER_API_KEY in the environment, clients must send it as their key.

    Examples:

      triton-taylorseer front
      triton-taylorseer front --alias gpt-image-2=emoji:64x64
      triton-taylorseer front --fetch-from https://cdn.example.com/pictures/
      TAYLORSEER_API_KEY=secret triton-taylorseer front --host 0.0.0.0
    """
    from clients.openai_api import create_app

    aliases = _aliases(alias or [])
    api_key = os.environ.get("TAYLORSEER_API_KEY") or None
    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        say("note: every client that reaches this port can use it; set TAYLORSEER_API_KEY to ask for a key")
    if api_key is None and "*" in (cors_origin or ()):
        say("note: every page that is open in a browser here can use it; set TAYLORSEER_API_KEY to ask for a key")
    try:
        application = create_app(
            triton,
            default_model=model,
            api_key=api_key,
            timeout_s=timeout,
            root_certificates=ca,
            aliases=aliases,
            fetch_from=fetch_from or (),
            cors_origins=cors_origin or (),
        )
    except (OSError, ValueError) as error:
        fail(error)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    say(f"{address} has a page, {address}/v1 OpenAI's API; Ctrl-C stops")
    _serve(application, host, port)


def _aliases(given: list[str]) -> dict[str, str]:
    """NAME=MODEL of each option: name -> model, perhaps with a size."""
    aliases = {}
    for each in given:
        name, _, model = each.partition("=")
        if not name or not model:
            raise typer.BadParameter(f"{each} is no alias, must be NAME=MODEL", param_hint="--alias")
        aliases[name] = model
    return aliases


def _serve(application: ASGIApp, host: str, port: int) -> None:
    from plugin.ops.http_server import run

    try:
        run(application, host, port, last_answers_s=30)  # as much as Triton gives its own requests
    except OSError as error:
        fail(f"port {port} on {host} cannot be used ({error.strerror or error}): choose --port or --host")
