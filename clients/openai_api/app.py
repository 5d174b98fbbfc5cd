"""The ASGI application."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from triton_taylorseer_client.async_client import AsyncClient
from triton_taylorseer_client.messages import GenerationError
from clients.openai_api import edits, generations, models
from clients.openai_api.edge import Edge
from clients.openai_api.errors import generation_error, validation_error
from clients.openai_api.fetching import Place
from clients.openai_api.front import Front, FrontOf
from clients.openai_api.held import Room
from clients.openai_api.not_served import http_error

WEB = Path(__file__).parents[1] / "web"


def create_app(
    triton: str = "localhost:8001",
    *,
    default_model: str | None = None,
    api_key: str | None = None,
    timeout_s: float | None = None,
    root_certificates: Path | None = None,
    aliases: Mapping[str, str] | None = None,
    fetch_from: Sequence[str] = (),
) -> FastAPI:
    """The ASGI application; arguments and errors as of `Front`.

    `fetch_from` has the URLs that addresses of pictures must begin with.
    """
    places = tuple(map(Place.of, fetch_from))
    front = Front(triton, default_model, api_key, timeout_s, root_certificates, dict(aliases or {}), places)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncClient(triton, root_certificates=root_certificates) as front.server:
            yield
            for client in front.clients.values():
                await client.close()

    app = FastAPI(title="triton-taylorseer", lifespan=life, docs_url=None, redoc_url=None)
    app.state.front = front
    app.add_middleware(Edge, room=Room())
    app.exception_handler(GenerationError)(generation_error)
    app.exception_handler(RequestValidationError)(validation_error)
    app.exception_handler(HTTPException)(http_error)
    app.include_router(models.health)
    for router in (models.router, generations.router, edits.router):
        app.include_router(router, prefix="/v1", dependencies=[Depends(_authorised)])
    app.mount("/", StaticFiles(directory=WEB, html=True))
    return app


async def _authorised(request: Request, front: FrontOf) -> None:
    if front.api_key is None:
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secrets.compare_digest(key.strip().encode(), front.api_key.encode()):
        raise HTTPException(
            401, "Authorization must be Bearer and the key of this server", {"WWW-Authenticate": "Bearer"}
        )
