"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from clients.openai_api import chat, edits, generations, metrics, models, responses, sdapi, videos
from clients.openai_api.authorisation import authorised, authorised_by_password
from clients.openai_api.cors import allow_origins
from clients.openai_api.edge import Edge
from clients.openai_api.errors import generation_error, validation_error
from clients.openai_api.fetching import Place
from clients.openai_api.front import Front
from clients.openai_api.held import Room
from clients.openai_api.metrics import Meter
from clients.openai_api.not_served import http_error
from triton_taylorseer_client.async_client import AsyncClient
from triton_taylorseer_client.messages import GenerationError

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
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """The ASGI application; arguments and errors as of `Front`.

    `fetch_from` has the URLs that addresses of pictures must begin with. Pages of `cors_origins` may use the front from
    a browser, "*" stands for all; ValueError where one is no origin.
    """
    places = tuple(map(Place.of, fetch_from))
    front = Front(triton, default_model, api_key, timeout_s, root_certificates, dict(aliases or {}), places)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncClient(triton, root_certificates=root_certificates) as front.server:
            yield
            await front.videos.close()
            for client in front.clients.values():
                await client.close()

    app = FastAPI(title="triton-taylorseer", lifespan=life, docs_url=None, redoc_url=None)
    room = Room()
    app.state.front, app.state.meter = front, Meter(room)
    app.add_middleware(Edge, room=room, meter=app.state.meter)
    allow_origins(app, cors_origins)
    app.exception_handler(GenerationError)(generation_error)
    app.exception_handler(RequestValidationError)(validation_error)
    app.exception_handler(HTTPException)(http_error)
    for router in (models.health, metrics.router):
        app.include_router(router)
    for router in (models.router, generations.router, edits.router, videos.router, chat.router, responses.router):
        app.include_router(router, dependencies=[Depends(authorised)])
    app.include_router(sdapi.router, dependencies=[Depends(authorised_by_password)])
    app.mount("/", StaticFiles(directory=WEB, html=True))
    return app
