"""OpenAI's chat, answered with a picture.

The picture stands in `images` of the message, as OpenRouter and LiteLLM have it and as programs for chats read it. Its
`content` is empty: a data URL in it too would show the picture twice, and come back with every further message.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from clients.openai_api.answers import data_url, dumped, finite
from clients.openai_api.chat_fields import ChatRequest
from clients.openai_api.conversation import with_subject
from clients.openai_api.edit_fields import openapi_body
from clients.openai_api.editing import made_or_edited
from clients.openai_api.forms import checked, object_of
from clients.openai_api.front import FrontOf
from triton_taylorseer_client.messages import Generation, Progress

_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}  # nothing is billed

router = APIRouter(prefix="/v1")


@router.post("/chat/completions", response_model=None, openapi_extra={"requestBody": openapi_body(ChatRequest)})
async def completions(request: Request, front: FrontOf) -> Response:
    """Answers the last message of the user with a picture."""
    request.state.kind = ChatRequest
    body = await checked(ChatRequest, await object_of(request))
    dialect = Chat(body, body.model or (await front.served(None)).model)
    return await made_or_edited(with_subject(body, "messages", body.subject), request, front, dialect)


class Chat:
    """How OpenAI's chat answers a request; `model` is the name that the client has sent, or the one that answers."""

    def __init__(self, body: ChatRequest, model: str) -> None:
        self._body = body
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def answer(self, results: list[Generation]) -> dict[str, Any]:
        """OpenAI's `ChatCompletion`, with a choice for each picture."""
        choices = [self._choice(index, result) for index, result in enumerate(results)]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": _USAGE}

    def events(self) -> Chat:
        return self

    def begun(self) -> Iterator[str]:
        yield self._chunk({"role": "assistant", "content": ""})

    def progressed(self, update: Progress) -> Iterator[str]:
        yield from ()

    def done(self, result: Generation) -> Iterator[str]:
        yield self._chunk({"images": self._images(result)})
        yield self._chunk({}, finish_reason="stop", report=finite(result.report))
        if self._body.wants_usage:
            yield self._event({"choices": [], "usage": _USAGE})
        yield "data: [DONE]\n\n"

    def failed(self, error: dict[str, Any]) -> Iterator[str]:
        yield f"data: {dumped({'error': error})}\n\n"

    def _choice(self, index: int, result: Generation) -> dict[str, Any]:
        message = {"role": "assistant", "content": "", "images": self._images(result)}
        return {"index": index, "message": message, "finish_reason": "stop", "report": finite(result.report)}

    def _images(self, result: Generation) -> list[dict[str, Any]]:
        return [{"type": "image_url", "image_url": {"url": data_url(result, self._body)}, "index": 0}]

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> str:
        return self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason} | more]})

    def _event(self, content: dict[str, Any]) -> str:
        return f"data: {dumped(self._head | {'object': 'chat.completion.chunk'} | content)}\n\n"
