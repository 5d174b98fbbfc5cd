"""OpenAI's responses, answered with a call of the tool `image_generation`. Nothing of them is kept."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from clients.openai_api.answers import file_of, file_of_result, finite, looks_of, typed_event
from clients.openai_api.conversation import with_subject
from clients.openai_api.edit_fields import openapi_body
from clients.openai_api.editing import made_or_edited
from clients.openai_api.forms import checked, object_of
from clients.openai_api.front import FrontOf
from clients.openai_api.previews import Previews
from clients.openai_api.responses_fields import ResponsesRequest, with_those_of_the_tool
from triton_taylorseer_client.messages import Generation, Progress

# Nothing is billed, but typed clients expect the numbers.
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}
_CALL = "image_generation_call"

router = APIRouter(prefix="/v1")


@router.post("/responses", response_model=None, openapi_extra={"requestBody": openapi_body(ResponsesRequest)})
async def responses(request: Request, front: FrontOf) -> Response:
    """Answers the last message of the user with a picture."""
    request.state.kind = ResponsesRequest
    fields = await object_of(request)
    body = await checked(ResponsesRequest, with_those_of_the_tool(fields))
    named = fields.get("model")
    model = named if isinstance(named, str) and named else body.model or (await front.served(None)).model
    dialect = Responses(body, model)
    return await made_or_edited(with_subject(body, "input", body.subject), request, front, dialect)


class Responses:
    """How OpenAI's responses answer a request.

    Args:
        body: the request.
        model: that the client has named, or the one that answers.
    """

    def __init__(self, body: ResponsesRequest, model: str) -> None:
        self._body = body
        self._response = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "parallel_tool_calls": True,
            "tool_choice": finite(body.tool_choice or "auto"),
            "tools": finite(body.tools or []),
        }

    def answer(self, results: list[Generation]) -> dict[str, Any]:
        """OpenAI's `Response`, with a call of the tool for each picture."""
        calls = [self.call(new_id(), result) for result in results]
        return self.response("completed", output=calls, usage=_USAGE)

    def events(self) -> ResponseEvents:
        return ResponseEvents(self._body, self)

    def response(self, status: str, **more: Any) -> dict[str, Any]:
        """The response as it is at a status."""
        return self._response | {"status": status, "output": []} | more

    def call(self, name: str, result: Generation) -> dict[str, Any]:
        """The finished call of the tool.

        Args:
            name: its id.
            result: what it has made.
        """
        body = self._body
        return _call(name, "completed") | {
            "result": file_of_result(result, body),
            "action": "edit" if body.has_pictures or body.subject.pictures else "generate",
            "report": finite(result.report),
            **looks_of(result.image, body),
        }


class ResponseEvents:
    """The events of one response, numbered in a row."""

    def __init__(self, body: ResponsesRequest, dialect: Responses) -> None:
        self._body = body
        self._dialect = dialect
        self._previews = Previews(body)
        self._numbers = itertools.count()
        self._id = new_id()

    def begun(self) -> Iterator[str]:
        for status in ("created", "in_progress"):
            yield self._event(status, response=self._dialect.response("in_progress"))
        yield self._event("output_item.added", output_index=0, item=_call(self._id, "in_progress") | {"result": None})
        for status in ("in_progress", "generating"):
            yield self._of_call(status)

    def progressed(self, update: Progress) -> Iterator[str]:
        if (preview := self._previews.due(update)) is not None:
            file = file_of(preview.image, self._body)
            looks = looks_of(preview.image, self._body)
            yield self._of_call("partial_image", partial_image_b64=file, partial_image_index=preview.index, **looks)

    def done(self, result: Generation) -> Iterator[str]:
        call = self._dialect.call(self._id, result)
        yield self._of_call("completed")
        yield self._event("output_item.done", output_index=0, item=call)
        yield self._event("completed", response=self._dialect.response("completed", output=[call], usage=_USAGE))

    def failed(self, error: dict[str, Any]) -> Iterator[str]:
        # OpenAI's type has names for few errors.
        code = "invalid_prompt" if error["type"] == "invalid_request_error" else "server_error"
        yield self._event("failed", response=self._dialect.response("failed", error=error | {"code": code}))

    def _of_call(self, status: str, **content: Any) -> str:
        return self._event(f"{_CALL}.{status}", item_id=self._id, output_index=0, **content)

    def _event(self, name: str, **content: Any) -> str:
        return typed_event(f"response.{name}", {"sequence_number": next(self._numbers)} | content)


def new_id() -> str:
    """An id for a call of the tool."""
    return f"ig_{uuid.uuid4().hex}"


def _call(name: str, status: str) -> dict[str, Any]:
    return {"id": name, "type": _CALL, "status": status}
