"""What a request of OpenAI's responses may hold: an input, the tool that makes pictures, and all that an edit may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, create_model

from clients.openai_api.conversation import MESSAGES_SCHEMA, Asked, asked
from clients.openai_api.edit_fields import EditRequest
from triton_taylorseer_client.messages import InvalidArgument

# What OpenAI's clients send to models that write.
_WITHOUT_MEANING = (
    *("access_programs", "background_options", "context_management", "include", "instructions", "max_output_tokens"),
    *("max_tool_calls", "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options"),
    *("prompt_cache_retention", "reasoning", "service_tier", "store", "stream_options", "temperature", "text"),
    *("top_logprobs", "top_p", "truncation"),
)
# What this front would have to remember, or to do later: field -> the only value that it may have, and why
_NOTHING_IS_KEPT = {
    "previous_response_id": (None, "this front keeps no responses"),
    "conversation": (None, "this front keeps no conversations"),
    "background": (False, "this front keeps no responses, it answers when the picture is made"),
}
_TOOL = "image_generation"
_INPUT_SCHEMA = {"anyOf": [{"type": "string", "description": "the prompt"}, MESSAGES_SCHEMA]}


def _subject(given: Any) -> Asked:
    return Asked(given or None) if isinstance(given, str) else asked(given)


def _chosen(choice: Any) -> Any:
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind not in ("auto", "required", _TOOL, "allowed_tools"):
        raise ValueError(f"must be auto, required or a choice of type {_TOOL}: no picture is asked for")
    return choice


def _with_tool(tools: Any) -> Any:
    if tools != [] and _tool_of(tools) is None:
        raise ValueError(f"must have one of type {_TOOL}, or be left out: no model here calls functions")
    return tools


def _tool_of(tools: Any) -> dict[str, Any] | None:
    """The first tool that makes pictures."""
    given = tools if isinstance(tools, list) else []
    return next((each for each in given if isinstance(each, dict) and each.get("type") == _TOOL), None)


class _Responses(EditRequest):
    """The fields of OpenAI's responses that mean something here; those of the tool are fields of the request too."""

    input: Annotated[Any, BeforeValidator(_subject), WithJsonSchema(_INPUT_SCHEMA)] = Field(...)
    tools: Annotated[
        list[Any] | None, BeforeValidator(_with_tool), WithJsonSchema({"type": "array", "items": {"type": "object"}})
    ] = None
    tool_choice: Annotated[Any, BeforeValidator(_chosen)] = None
    action: Literal["generate", "edit", "auto"] = "auto"

    @classmethod
    def param_of(cls, name: str, sized: bool) -> str | None:
        if name in ("prompt", "input_image", "images", "image"):
            return "input"
        return name if name in _NOTHING_IS_KEPT else super().param_of(name, sized)

    @property
    def subject(self) -> Asked:
        """What is asked for.

        Raises:
            InvalidArgument: `action` does not go with it.
        """
        asked_for: Asked = self.input
        has_pictures = self.has_pictures or bool(asked_for.pictures)
        if self.action == ("generate" if has_pictures else "edit"):
            have = "no picture" if has_pictures else "a picture"
            raise InvalidArgument(f"action is {self.action}, must be auto, or the last message of the user have {have}")
        return asked_for


if TYPE_CHECKING:
    ResponsesRequest = _Responses
else:
    ResponsesRequest = create_model(
        "ResponsesRequest", __base__=_Responses, **dict.fromkeys(_WITHOUT_MEANING, (Any, None))
    )


def with_those_of_the_tool(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request, and among them those of its tool, which says how the picture is made.

    Raises:
        InvalidArgument: something must be kept for it.
    """
    for name, (only, reason) in _NOTHING_IS_KEPT.items():
        if fields.get(name) not in (None, only):
            raise InvalidArgument(f"{name} is given, must be left out: {reason}")
    tool = _tool_of(fields.get("tools")) or {}
    of_tool = {name: value for name, value in tool.items() if name != "type" and value is not None}
    if "input_image_mask" in of_tool:
        of_tool["mask"] = of_tool.pop("input_image_mask")
    return {name: value for name, value in fields.items() if name not in _NOTHING_IS_KEPT} | of_tool
