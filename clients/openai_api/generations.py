"""The endpoint that makes pictures from text; docs/reference.md lists its fields."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from clients.openai_api.fields import ImageRequest
from clients.openai_api.front import FrontOf
from clients.openai_api.making import made

router = APIRouter(prefix="/v1")


@router.post("/images/generations", response_model=None)
async def generations(body: ImageRequest, request: Request, front: FrontOf) -> Response:
    """Makes pictures."""
    return await made(body, request, front)
