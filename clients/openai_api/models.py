"""The endpoints about models, and whether one is ready."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from clients.openai_api.answers import Json
from clients.openai_api.front import Front, FrontOf
from triton_taylorseer_client.async_client import AsyncClient
from triton_taylorseer_client.messages import GenerationError

_DESCRIBED_S = 5.0  # a model that hangs is listed nevertheless

health = APIRouter()
router = APIRouter(prefix="/v1")


@health.get("/healthz")
async def healthz(front: FrontOf) -> Json:
    """The models that are ready; 503 if Triton does not answer or no model is ready."""
    return Json({"models": await front.some_models()})


@router.get("/models")
async def listed(front: FrontOf) -> Json:
    """The served models, as OpenAI lists them, each with its `parameters` in Triton, its `tasks` and its `presets`."""
    names = await front.models()
    return Json({"object": "list", "data": await asyncio.gather(*(_described(front, name, name) for name in names))})


@router.get("/models/{name:path}")
async def retrieved(name: str, front: FrontOf) -> Json:
    """One of them, by its name or an alias."""
    return Json(await _described(front, name, (await front.served(name)).model))


async def _described(front: Front, name: str, model: str) -> dict[str, Any]:
    client = front.client(model)
    parameters, description = await asyncio.gather(client.parameters(), _description(client))
    told = {name: description.get(name, []) for name in ("tasks", "presets")}
    own = {"parameters": parameters, **told}
    return {"id": name, "object": "model", "created": 0, "owned_by": "triton", **own}


async def _description(client: AsyncClient) -> dict[str, Any]:
    """What the model tells of itself; nothing where it does not."""
    try:
        return await client.description(timeout_s=_DESCRIBED_S)
    except GenerationError:
        return {}
