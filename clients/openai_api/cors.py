"""Pages from elsewhere that may use the front from a browser: none, unless it was told."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from yarl import URL

ANY = "*"
_SEEN = ("x-request-id", "retry-after", "retry-after-ms", "x-should-retry")  # which OpenAI's clients read


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Lets pages of these origins use the application; it must be called after all other middleware is added.

    So refusals, wherever they are made, have the headers that let a page read them. Preflights are answered before a
    key is asked for, which browsers do not send with them. The key itself is no credential in the sense of CORS.

    Raises:
        ValueError: one is no origin.
    """
    for origin in origins:
        if origin != ANY and not _is_origin(origin):
            raise ValueError(f"cors_origin is {origin}, must be * or scheme, host and port, as https://app.example.com")
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*origins],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=[*_SEEN],
        )


def _is_origin(text: str) -> bool:
    """Whether it is as browsers write it: without a path, a user, or anything else."""
    try:
        url = URL(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.host) and str(url.origin()) == text
