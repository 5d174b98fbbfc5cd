"""The endpoint that edits pictures; docs/clients.md shows it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from clients.openai_api.edit_fields import FORM_FILES, EditRequest, openapi_body
from clients.openai_api.editing import edited
from clients.openai_api.forms import checked, fields_of
from clients.openai_api.front import FrontOf

router = APIRouter(prefix="/v1")


@router.post("/images/edits", response_model=None, openapi_extra={"requestBody": openapi_body(EditRequest, FORM_FILES)})
async def edits(request: Request, front: FrontOf) -> Response:
    """Makes pictures from pictures."""
    request.state.kind = EditRequest
    return await edited(await checked(EditRequest, await fields_of(request)), request, front)
