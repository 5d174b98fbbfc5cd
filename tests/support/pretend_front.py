"""The page and the HTTP API that it talks to, with made-up pictures; it records what it is asked."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
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
FULL = "2 requests are in flight and 1 wait, which is all this model takes: try again in 0.7 s"
PRESETS = ["default", "paper"]  # of each model that tells its tasks
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

    Attributes:
        asked: the requests so far.
        gate: streams stay at their first step until it is set, as it is at first.
        step_s: seconds of each step.
        places: in the queue, which a stream tells before its first step.
        full: how many requests to come are refused, as the queue is full.
        retry_after_s: what these are told.
        cut: whether connections break after the first step.
        warnings: of each report.
        at_once: how many streams there are now.
        most_at_once: and how many there were at most.
    """

    def __init__(
        self, models: dict[str, Sequence[Task] | None], parameters: dict[str, str], refusal: str | None = None
    ) -> None:
        self.asked: list[Asked] = []
        self.gate = threading.Event()
        self.gate.set()
        self.step_s = 0.01
        self.places: Sequence[int] = ()
        self.full = 0
        self.retry_after_s: int | None = None
        self.cut = False
        self.warnings: list[str] = []
        self.at_once = self.most_at_once = 0
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
                model |= {"tasks": list(tasks), "presets": PRESETS}
        return JSONResponse({"object": "list", "data": models})

    async def _generate(self, request: Request) -> Response:
        asked = Asked(request.url.path, await request.json())
        self.asked.append(asked)
        return self._streamed("image_generation", asked, _plain(asked.fields["size"], asked.fields["seed"]))

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
        if self.full:
            self.full -= 1
            told = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
            return JSONResponse({"error": {"message": FULL}}, 503, told)
        return StreamingResponse(self._events(kind, asked, result), media_type="text/event-stream")

    async def _events(self, kind: str, asked: Asked, result: Image.Image) -> AsyncIterator[str]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            async for name, content in self._progress(result):
                yield _event(f"{kind}.{name}" if name != "error" else name, content)
                if self.cut:
                    raise ConnectionAbortedError("on purpose")
            if not self._refusal:
                yield _event(f"{kind}.completed", _file(result) | {"report": self._report(asked, result)})
        finally:
            self.at_once -= 1

    async def _progress(self, result: Image.Image) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        if self._refusal:
            yield "error", {"error": {"message": self._refusal}}
            return
        for place in self.places:
            yield "progress", {"step": 0, "num_steps": _STEPS, "queue_position": place}
            await asyncio.sleep(max(0.05, self.step_s))
        for step in range(1, _STEPS + 1):
            yield "progress", {"step": step, "num_steps": _STEPS}
            await asyncio.sleep(self.step_s)
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
        yield "partial_image", _file(result)

    def _report(self, asked: Asked, result: Image.Image) -> dict[str, Any]:
        full = list(range(_STEPS)) if str(asked.fields.get("cache_interval")) == "1" else [0]
        steps = {"seed": int(asked.fields["seed"]), "num_steps": _STEPS, "full_steps": full, "warnings": self.warnings}
        times = {"total_s": 0.5, "denoise_s": 0.4 if len(full) > 1 else 0.1, "queue_s": 0.02}
        return steps | times | {"engine": "pretended", "width": result.width, "height": result.height}


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


def _plain(size: str, seed: int) -> Image.Image:
    """A colour for each seed."""
    return Image.new("RGB", tuple(map(int, size.split("x"))), (seed * 83 % 200, 140, 90))


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
