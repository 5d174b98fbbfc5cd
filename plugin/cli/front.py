"""`triton-taylorseer front`: OpenAI's images API and a web page."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from plugin.cli.options import LOCALHOST, TRITON, Host, Url
from plugin.cli.terminal import say

Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Model of requests that name none. Default: the first one that is ready."),
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
) -> None:
    """Serves OpenAI's images API and a web page in front of a running Triton.

    With TAYLORSEER_API_KEY in the environment, clients must send it as their key.

    Examples:

      triton-taylorseer front
      TAYLORSEER_API_KEY=secret triton-taylorseer front --host 0.0.0.0
    """
    import uvicorn

    from clients.openai_api import create_app

    api_key = os.environ.get("TAYLORSEER_API_KEY") or None
    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        say("note: every client that reaches this port can use it; set TAYLORSEER_API_KEY to ask for a key")
    application = create_app(triton, default_model=model, api_key=api_key, timeout_s=timeout)
    say(f"http://{host}:{port} has a page, http://{host}:{port}/v1 OpenAI's images API; Ctrl-C stops")
    # At the end, streams in progress get as much time as Triton gives its own requests.
    uvicorn.run(
        application, host=host, port=port, log_level="warning", server_header=False, timeout_graceful_shutdown=30
    )
