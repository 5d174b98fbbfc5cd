"""A front that speaks OpenAI's images API, and serves a web page, in front of a Triton server.

    triton-taylorseer front --triton localhost:8001

It holds no model: each request becomes a gRPC stream to Triton, which ends when the HTTP client disconnects. Inputs of
the served models that OpenAI's API has no name for, for example the cache settings, are further fields with the inputs'
own names (`extra_body` of OpenAI's own clients).
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, create_model
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients.async_client import AsyncClient
from clients.messages import (
    INPUTS,
    Cancelled,
    DeadlineExceeded,
    Generation,
    GenerationError,
    InvalidArgument,
    Pixels,
    Progress,
    Unavailable,
    UnknownModel,
    encoded_image,
)

WEB = Path(__file__).parent / "web"
MAX_BODY_BYTES = 1 << 20
_TOO_LARGE = f"the body is larger than {MAX_BODY_BYTES} bytes"
MAX_PICTURES = 10  # of one request, as in OpenAI's API
_PING_S = 15.0  # a proxy ends a connection on which nothing is sent for about a minute
_REFUSED_WITHIN_S = 2.0  # a refusal within this time has an HTTP status; later errors are events of the stream
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
_PYTHON: dict[str, Any] = {"BYTES": str, "INT64": int, "INT32": int, "FP32": FiniteFloat, "BOOL": bool}
_OWN_NAMES = ("prompt", "height", "width", "preview")  # OpenAI's fields for them: prompt, size and partial_images

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; frame-ancestors 'none'"
    ),
}


class _OpenAIFields(BaseModel):
    """The fields of OpenAI's images API; those that have no meaning here are accepted and ignored."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    seed: int | None = Field(None, description="of the first picture; each further picture has the next one")
    model: str | None = None
    n: int = Field(1, ge=1, le=MAX_PICTURES)
    size: str = Field("auto", pattern=r"^(auto|\d{1,5}x\d{1,5})$", description="widthxheight in pixels")
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(90, ge=0, le=100, description="quality of jpeg and webp")
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    progress: bool = Field(False, description="on a stream: an event image_generation.progress for each step")
    background: str | None = None
    moderation: str | None = None
    quality: str | None = None
    style: str | None = None
    user: str | None = None

    def request_fields(self) -> dict[str, Any]:
        """The served model's inputs."""
        fields = {name: getattr(self, name) for name in INPUTS if name not in _OWN_NAMES}
        if self.size != "auto":
            fields["width"], fields["height"] = map(int, self.size.split("x"))
        return {"prompt": self.prompt} | fields


if TYPE_CHECKING:
    ImageRequest = _OpenAIFields
else:
    ImageRequest = create_model(
        "ImageRequest",
        __base__=_OpenAIFields,
        **{
            name: (_PYTHON[kind] | None, None)
            for name, kind in INPUTS.items()
            if name not in (*_OWN_NAMES, *_OpenAIFields.model_fields)
        },
    )


@dataclass
class Front:
    """What the endpoints share.

    Attributes:
        triton: host:port of Triton's gRPC endpoint.
        default_model: the model of requests that name none; None for the first one that is ready.
        api_key: the key that clients must send as a bearer token; None to ask for none.
        timeout_s: seconds that a request may take; None for no limit but its own `deadline_ms`.
        server: a client for calls that are not about one model; set while the application runs.
        clients: one for each model that was asked for.
    """

    triton: str
    default_model: str | None
    api_key: str | None
    timeout_s: float | None
    server: AsyncClient | None = None
    clients: dict[str, AsyncClient] = field(default_factory=dict)

    def client(self, model: str) -> AsyncClient:
        """The client of a model that Triton has; it is kept open."""
        if model not in self.clients:
            self.clients[model] = AsyncClient(self.triton, model)
        return self.clients[model]

    async def models(self) -> list[str]:
        """The models that are ready, the default one first.

        Raises:
            Unavailable: no server answers.
        """
        assert self.server is not None
        names = set(await self.server.ready_models())
        served = sorted(name for name in names if f"{name}_stream" in names)
        return sorted(served, key=lambda name: name != self.default_model)

    async def chosen(self, model: str | None) -> AsyncClient:
        """The client of the model that a request names, or of the default one."""
        models = await self.models()
        if model is None and models:
            return self.client(models[0])
        if model not in models:
            listed = ", ".join(models) or "none"
            raise UnknownModel(f"model is {model or self.default_model}, must be one that is ready: {listed}")
        return self.client(model)


def create_app(
    triton: str = "localhost:8001",
    *,
    default_model: str | None = None,
    api_key: str | None = None,
    timeout_s: float | None = None,
) -> FastAPI:
    """The ASGI application; arguments as in `Front`."""
    front = Front(triton, default_model, api_key, timeout_s)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncClient(triton) as front.server:
            yield
            for client in front.clients.values():
                await client.close()

    app = FastAPI(title="triton-taylorseer", lifespan=life, docs_url=None, redoc_url=None)
    app.state.front = front
    app.add_middleware(_Edge)
    app.exception_handler(GenerationError)(_generation_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(Exception)(_unexpected_error)
    app.include_router(_open)
    app.include_router(_guarded, dependencies=[Depends(_authorised)])
    app.mount("/", StaticFiles(directory=WEB, html=True))
    return app


_open = APIRouter()
_guarded = APIRouter(prefix="/v1")


def _front(request: Request) -> Front:
    return request.app.state.front


_Front = Annotated[Front, Depends(_front)]


async def _authorised(request: Request, front: _Front) -> None:
    if front.api_key is None:
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secrets.compare_digest(key.strip().encode(), front.api_key.encode()):
        raise HTTPException(
            401, "Authorization must be Bearer and the key of this server", {"WWW-Authenticate": "Bearer"}
        )


@_open.get("/healthz")
async def health(front: _Front) -> dict[str, Any]:
    """The models that are ready; 503 if Triton does not answer or no model is ready."""
    models = await front.models()
    if not models:
        raise Unavailable(f"no model is ready at {front.triton}")
    return {"models": models}


@_guarded.get("/models")
async def models(front: _Front) -> dict[str, Any]:
    """The served models, as OpenAI lists them, each with its `parameters` in Triton."""
    names = await front.models()
    parameters = await asyncio.gather(*(front.client(name).parameters() for name in names))
    described = [
        {"id": name, "object": "model", "created": 0, "owned_by": "triton", "parameters": each}
        for name, each in zip(names, parameters, strict=True)
    ]
    return {"object": "list", "data": described}


@_guarded.post("/images/generations", response_model=None)
async def generations(body: ImageRequest, request: Request, front: _Front) -> Response | dict[str, Any]:
    """Makes pictures; docs/reference.md lists the fields."""
    client = await front.chosen(body.model)
    if body.stream:
        if body.n != 1:
            raise InvalidArgument(f"n is {body.n}, must be 1 with stream")
        return await _streamed(body, client, front, _trace_headers(request))
    fields = body.request_fields()
    requests = [fields | ({} if body.seed is None else {"seed": body.seed + i}) for i in range(body.n)]
    traced = _trace_headers(request)
    results = await _unless_gone(request, _together([_last_of(client, front, each, traced) for each in requests]))
    answer = {"created": int(time.time()), "data": [_datum(result, body) for result in results]}
    return answer | _format_of(results[0].image, body)


def _trace_headers(request: Request) -> dict[str, str]:
    """The header that makes Triton's spans part of the caller's trace."""
    traceparent = request.headers.get("traceparent", "")
    return {"traceparent": traceparent} if _TRACEPARENT.fullmatch(traceparent) else {}


async def _last_of(client: AsyncClient, front: Front, fields: dict[str, Any], headers: dict[str, str]) -> Generation:
    # A stream: closing it cancels the request.
    async with aclosing(client.stream(**fields, timeout_s=front.timeout_s, headers=headers)) as updates:
        async for update in updates:
            if isinstance(update, Generation):
                return update
    raise GenerationError("the stream ended without a picture")


async def _together(requests: list[Coroutine[Any, Any, Generation]]) -> list[Generation]:
    """All results; the first failure cancels the other requests."""
    tasks = [asyncio.ensure_future(each) for each in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, list[Generation]]) -> list[Generation]:
    """The result, or `Cancelled` as soon as the HTTP client disconnects."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    result, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({result, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        raise Cancelled("the client has disconnected")
    finally:
        for task in (result, leaving):
            task.cancel()
        await asyncio.wait({result, leaving})


async def _streamed(
    body: ImageRequest, client: AsyncClient, front: Front, headers: dict[str, str]
) -> StreamingResponse:
    """A response of server-sent events; a request that is refused at once gets an error with its own HTTP status."""
    fields = body.request_fields() | {"preview": body.partial_images > 0 or None}
    updates = client.stream(**fields, timeout_s=front.timeout_s, headers=headers)
    first = asyncio.ensure_future(anext(updates))
    try:
        await asyncio.wait({first}, timeout=_REFUSED_WITHIN_S)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        await asyncio.wait({first})
        await updates.aclose()
        raise
    return StreamingResponse(
        _events(body, updates, first),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(
    body: ImageRequest,
    updates: AsyncGenerator[Progress | Generation, None],
    upcoming: asyncio.Future[Progress | Generation],
) -> AsyncIterator[str]:
    partial = 0
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=_PING_S)
            if not upcoming.done():
                yield ": waiting\n\n"
                continue
            update = upcoming.result()
            if isinstance(update, Generation):
                yield _event("completed", _datum(update, body) | _format_of(update.image, body))
                return
            if body.progress:
                yield _event("progress", {"step": update.step, "num_steps": update.num_steps})
            due = (partial + 1) * update.num_steps / (body.partial_images + 1)
            if update.preview is not None and partial < body.partial_images and update.step >= due:
                image = update.preview[None]
                picture = {"b64_json": _base64(image, body), "partial_image_index": partial}
                yield _event("partial_image", picture | _format_of(image, body))
                partial += 1
            upcoming = asyncio.ensure_future(anext(updates))
    except GenerationError as error:
        yield f"event: error\ndata: {json.dumps({'type': 'error', 'error': _error(error)[1]})}\n\n"
    finally:
        upcoming.cancel()
        with suppress(BaseException):
            await upcoming
        await updates.aclose()


def _event(name: str, data: dict[str, Any]) -> str:
    kind = f"image_generation.{name}"
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'created_at': int(time.time())} | data)}\n\n"


def _datum(result: Generation, body: ImageRequest) -> dict[str, Any]:
    return {"b64_json": _base64(result.image, body, result.report.get("fps", 0)), "report": result.report}


def _base64(image: Pixels, body: ImageRequest, fps: int = 0) -> str:
    return base64.b64encode(encoded_image(image, body.output_format, body.output_compression, fps)).decode()


def _format_of(image: Pixels, body: ImageRequest) -> dict[str, Any]:
    frames, height, width, _ = image.shape
    return {
        "size": f"{width}x{height}",
        "output_format": "mp4" if frames > 1 else body.output_format,
        "background": "opaque",
        "quality": "auto",
    }


# Errors, in OpenAI's form


_KINDS: list[tuple[type[GenerationError], int, str]] = [
    (UnknownModel, 404, "model_not_found"),
    (InvalidArgument, 400, "invalid_value"),
    (Unavailable, 503, "unavailable"),
    (DeadlineExceeded, 504, "deadline_exceeded"),
    (Cancelled, 499, "cancelled"),
    (GenerationError, 500, "server_error"),
]


def _error(error: GenerationError) -> tuple[int, dict[str, Any]]:
    """The HTTP status and OpenAI's error object."""
    status, code = next((status, code) for kind, status, code in _KINDS if isinstance(error, kind))
    first_word = str(error).partition(" ")[0]
    return status, _error_object(
        status, str(error), code, first_word if first_word in ImageRequest.model_fields else None
    )


def _error_object(status: int, message: str, code: str, field: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": field, "code": code}


def _generation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GenerationError)
    status, content = _error(error)
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or 1.0))
    return JSONResponse({"error": content}, status, headers)


def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "extra_forbidden":
        message = f"{place[-1]} is not a field, must be one of: {', '.join(sorted(ImageRequest.model_fields))}"
    elif first["type"] in ("json_invalid", "missing", "model_attributes_type"):
        message = "the body must be a JSON object, sent as application/json"
    else:
        given = json.dumps(first.get("input"), default=str)[:100]
        message = f"{place[-1] if place else 'body'} is {given}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return JSONResponse({"error": _error_object(400, message, "invalid_value", place[-1] if place else None)}, 400)


def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {401: "invalid_api_key", 404: "not_found"}.get(error.status_code, "http_error")
    content = _error_object(error.status_code, str(error.detail), code)
    return JSONResponse({"error": content}, error.status_code, error.headers)


def _unexpected_error(_: Request, error: Exception) -> JSONResponse:
    content = _error_object(500, f"this front failed: {type(error).__name__}", "server_error")
    return JSONResponse({"error": content}, 500)


# HTTP


class _Edge:
    """Adds headers for browsers, and refuses bodies above `MAX_BODY_BYTES`, also those that do not state their length.

    It is plain ASGI, because Starlette's middleware class hides from an endpoint that its client has disconnected.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise HTTPException(413, _TOO_LARGE)
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            content = _error_object(413, _TOO_LARGE, "too_large")
            await JSONResponse({"error": content}, 413)(scope, receive, with_headers)
            return
        await self._app(scope, limited, with_headers)
