"""The nodes that say where and how pictures are made: Server, Cache Settings, Model Limits."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from triton_taylorseer_client import GenerationError, Unavailable

from .background import run
from .checks import COORDINATES, PREDICTORS, fields_of
from .connection import SERVER, Connection, described, limits_of, served_models
from .host import raise_if_interrupted
from .node import Checked, Inputs, Node
from .settings import urls_of
from .turns import Turns
from .widgets import CACHE, cached


class Server(Node):
    """Where pictures are made, and by which model."""

    DESCRIPTION = (
        "Servers of triton-taylorseer and a model. Several servers, one on each line, take turns; one that does not "
        "answer is left out for half a minute. Keys stay in the environment: see README.md."
    )
    RETURN_TYPES = (SERVER,)
    RETURN_NAMES = ("server",)
    FUNCTION = "connect"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        published = cls.known.published()
        url = "HOST:PORT of each server's gRPC, one on each line; grpcs:// before it for TLS."
        model = f"The model. Ready at present: {', '.join(published.limits) or 'not known, no server has answered'}."
        return {
            "required": {
                "url": ("STRING", {"default": "\n".join(cls.known.settings.urls), "multiline": True, "tooltip": url}),
                "model": ("STRING", {"default": published.model, "tooltip": model}),
                "preview": ("BOOLEAN", {"default": True, "tooltip": "Show pictures while they are made."}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, url: Any = None, model: Any = None) -> bool | str:  # noqa: N802
        try:
            urls_of(str(url) if url is not None else "localhost:8001")
        except ValueError as error:
            return str(error)
        if model is not None and not str(model).strip():
            return "model is empty, must be the name of a served model"
        return True

    def connect(self, url: str, model: str, preview: bool) -> tuple[Connection]:
        return (Connection(model.strip(), preview, Turns(urls_of(url)), self.known.settings),)


class Cache(Checked):
    """Settings of the cache for the requests that it is connected to."""

    DESCRIPTION = "How the cache forecasts steps. What is left as it is follows the preset, or the model itself."
    RETURN_TYPES = (CACHE,)
    RETURN_NAMES = ("cache",)
    FUNCTION = "settings"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        return {"required": cached(PREDICTORS, COORDINATES, cls.known.published().widgets())}

    def settings(self, **widgets: Any) -> tuple[dict[str, Any]]:
        return (fields_of(widgets),)


class ModelLimits(Node):
    """What the model accepts, what it does by default, and which others there are, as text."""

    DESCRIPTION = "Limits, defaults and tasks of the model, and the models that are ready, as JSON."
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("limits",)
    FUNCTION = "ask"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        return {"required": {"server": (SERVER, {"forceInput": True})}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802
        return float("nan")  # is asked in each run: the server may have changed

    def ask(self, server: Connection) -> tuple[str]:
        return (run(lambda: _told_by(server), raise_if_interrupted),)


async def _told_by(connection: Connection) -> str:
    refusals: list[GenerationError] = []
    for url in connection.turns.take():
        try:
            async with connection.client(url) as client:
                told = {
                    "server": url,
                    "models": await served_models(client, url),
                    "model": connection.model,
                    "limits": asdict(await limits_of(client, url)),
                    "tasks": await described(client),
                }
            return json.dumps(told, ensure_ascii=False, indent=1)
        except GenerationError as refusal:
            refusals.append(refusal)
    raise Unavailable("; ".join(map(str, refusals)))
