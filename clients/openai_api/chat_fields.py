"""What a request of OpenAI's chat may hold: a conversation, and all that a request for an edit may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, create_model

from clients.openai_api.conversation import MESSAGES_SCHEMA, Asked, asked
from clients.openai_api.edit_fields import EditRequest

# What OpenAI's clients send to models that write.
_WITHOUT_MEANING = (
    *("audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens"),
    *("max_tokens", "metadata", "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key"),
    *("prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "service_tier", "stop", "store"),
    *("temperature", "tools", "top_logprobs", "top_p", "verbosity", "web_search_options"),
)


def _with_pictures(modalities: Any) -> Any:
    if not isinstance(modalities, list) or "image" not in modalities:
        raise ValueError("must have image, or be left out: the answer is a picture")
    return modalities


def _calls_no_function(choice: Any) -> Any:
    if choice not in ("auto", "none"):
        raise ValueError("must be auto or none: no model here calls functions")
    return choice


class _Chat(EditRequest):
    """The fields of OpenAI's chat that mean something here."""

    messages: Annotated[Any, BeforeValidator(asked), WithJsonSchema(MESSAGES_SCHEMA)] = Field(...)
    modalities: Annotated[Any, BeforeValidator(_with_pictures)] = None
    tool_choice: Annotated[Any, BeforeValidator(_calls_no_function)] = None
    stream_options: dict[str, Any] | None = None
    response_format: Any = None  # chat's own says how text is written

    @classmethod
    def param_of(cls, name: str, sized: bool) -> str | None:
        of_messages = ("prompt", "input_image", "images", "image")
        return "messages" if name in of_messages else super().param_of(name, sized)

    @property
    def subject(self) -> Asked:
        return self.messages

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool((self.stream_options or {}).get("include_usage"))


if TYPE_CHECKING:
    ChatRequest = _Chat
else:
    ChatRequest = create_model("ChatRequest", __base__=_Chat, **dict.fromkeys(_WITHOUT_MEANING, (Any, None)))
