"""The page and the HTTP API that it talks to, with made-up pictures; it records what it is asked."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from clients.openai_api import edge
from clients.openai_api.app import WEB
from tests.support.front import running_app

_STEPS = 8
_LIMITS = {"max_size": "2048", "min_size": "16", "size_multiple": "8", "width": "64", "height": "48"}

Task = dict[str, Any]


def task(low: int, high: int, *, mask: bool = False, strength: float | None = None) -> Task:
    """What a model can do with from `low` to `high` pictures, as /v1/models tells it."""
    return {
        "pipeline": "FluxPipeline",
        "input_image": {"min": low, "max": high},
        "mask_image": mask,
        "strength": strength,
    }


@dataclass(frozen=True)
class File:
    """One file of a form."""

    name: str
    content: bytes

    @property
    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.content))


@dataclass(frozen=True)
class Asked:
    """One request: its path, its fields, and the files of a form under the names of their fields."""

    path: str
    fields: dict[str, Any]
    files: dict[str, list[File]] = field(default_factory=dict)


class PretendFront:
    """Answers with a picture whose colours are the input's, inverted where the mask is transparent.

    Args:
        models: name -> its tasks, or None for a server that tells of none.
        parameters: of each model, besides its sizes.
        refusal: a message that ends each stream in place of a picture.
    """

    def __init__(
        self, models: dict[str, Sequence[Task] | None], parameters: dict[str, str], refusal: str | None = None
    ) -> None:
        self.asked: list[Asked] = []
        self._models = models
        self._parameters = _LIMITS | parameters
        self._refusal = refusal
        routes = [
            Route("/v1/models", self._list_models),
            Route("/v1/images/generations", self._generate, methods=["POST"]),
            Route("/v1/images/edits", self._edit, methods=["POST"]),
            Mount("/", StaticFiles(directory=WEB, html=True)),
        ]
        self.app = Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=_with_policy)])

    async def _list_models(self, _: Request) -> Response:
        models: list[dict[str, Any]] = [{"id": name, "parameters": self._parameters} for name in self._models]
        for model, tasks in zip(models, self._models.values(), strict=True):
            if tasks is not None:
                model["tasks"] = list(tasks)
        return JSONResponse({"object": "list", "data": models})

    async def _generate(self, request: Request) -> Response:
        asked = Asked(request.url.path, await request.json())
        self.asked.append(asked)
        return self._streamed("image_generation", asked, _plain(asked.fields["size"]))

    async def _edit(self, request: Request) -> Response:
        fields: dict[str, str] = {}
        files: dict[str, list[File]] = {}
        async with request.form() as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    assert name not in fields, f"{name} is sent twice"
                    fields[name] = value
                else:
                    files.setdefault(name, []).append(File(value.filename or "", await value.read()))
        asked = Asked(request.url.path, fields, files)
        self.asked.append(asked)
        return self._streamed("image_edit", asked, _edited(asked))

    def _streamed(self, kind: str, asked: Asked, result: Image.Image) -> Response:
        return StreamingResponse(self._events(kind, asked, result), media_type="text/event-stream")

    async def _events(self, kind: str, asked: Asked, result: Image.Image) -> AsyncIterator[str]:
        if self._refusal:
            yield _event("error", {"error": {"message": self._refusal}})
            return
        for step in range(1, _STEPS + 1):
            yield _event(f"{kind}.progress", {"step": step, "num_steps": _STEPS})
            await asyncio.sleep(0.01)
        picture = _file(result)
        yield _event(f"{kind}.partial_image", {"b64_json": picture["b64_json"]})
        full = list(range(_STEPS)) if str(asked.fields.get("cache_interval")) == "1" else [0]
        report = {"seed": int(asked.fields["seed"]), "num_steps": _STEPS, "full_steps": full, "warnings": []}
        yield _event(f"{kind}.completed", picture | {"report": report | {"total_s": 0.5, "denoise_s": 0.4}})


async def _with_policy(request: Request, call_next: Any) -> Response:
    """What the page may load is decided by the headers of the real front."""
    response = await call_next(request)
    response.headers.update(edge._HEADERS)
    return response


def _event(kind: str, content: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | content)}\n\n"


def _file(image: Image.Image) -> dict[str, str]:
    png = io.BytesIO()
    image.save(png, "PNG")
    size = f"{image.width}x{image.height}"
    return {"b64_json": base64.b64encode(png.getvalue()).decode(), "output_format": "png", "size": size}


def _plain(size: str) -> Image.Image:
    return Image.new("RGB", tuple(map(int, size.split("x"))), "seagreen")


def _edited(asked: Asked) -> Image.Image:
    (first, *_) = next(files for name, files in asked.files.items() if name != "mask")
    before = ImageOps.exif_transpose(first.image).convert("RGB")
    kept = asked.files["mask"][0].image.getchannel("A") if "mask" in asked.files else Image.new("L", before.size, 0)
    result = Image.composite(before, ImageOps.invert(before), kept)
    return result.resize(tuple(map(int, asked.fields["size"].split("x")))) if "size" in asked.fields else result


@contextmanager
def pretend_front(
    models: dict[str, Sequence[Task] | None],
    parameters: dict[str, str] | None = None,
    refusal: str | None = None,
) -> Iterator[tuple[str, PretendFront]]:
    """Its URL and itself; arguments as of `PretendFront`."""
    front = PretendFront(models, parameters or {}, refusal)
    with running_app(front.app) as url:
        yield url, front
