"""What a conversation asks for: the text and the pictures of its last message by the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from clients.openai_api.edit_fields import EditRequest
from clients.openai_api.pictures import MAX_PICTURES, Address, picture
from triton_taylorseer_client.messages import InvalidArgument

# As OpenAPI tells of one.
MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object"},
    "description": "the last one of role user is the prompt, and its pictures begin an edit",
}
_PARTS = "must have parts of type text or picture alone"

_Request = TypeVar("_Request", bound=EditRequest)


@dataclass(frozen=True)
class Asked:
    """What the last message of the user says: its text, None where it has none, and its pictures."""

    prompt: str | None
    pictures: tuple[bytes | Address, ...] = ()


def asked(messages: Any) -> Asked:
    """What a list of messages asks for, in the form of OpenAI's chat or of its responses.

    Raises:
        ValueError: it is no such list, has no message of role user, or the last of these cannot be read. The message is
            what the value must be.
    """
    of_user = [each for each in messages if _is_of_user(each)] if isinstance(messages, list) else []
    if not of_user:
        raise ValueError("must be a list of messages, one of them of role user: its text is the prompt")
    content = of_user[-1].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise ValueError(_PARTS)
    read = [_read(part) for part in parts]
    texts = [part for part in read if isinstance(part, str)]
    pictures = tuple(part for part in read if not isinstance(part, str))
    if len(pictures) > MAX_PICTURES:
        raise ValueError(f"must have at most {MAX_PICTURES} pictures in the last message of role user")
    return Asked("\n".join(texts) or None, pictures)


def with_subject(body: _Request, name: str, subject: Asked) -> _Request:
    """The request for what a conversation asks for: one picture, also of a model of videos.

    Args:
        body: the request, with all else that it says.
        name: of its field that has the conversation.
        subject: what that asks for.

    Raises:
        InvalidArgument: it has a prompt of its own, or asks for a video.
    """
    if body.prompt is not None:
        raise InvalidArgument(f"prompt is given beside {name}, must be left out: the last message of the user is it")
    pictures = {"images": [*subject.pictures]} if subject.pictures else {}
    return body.of_one_frame().model_copy(update={"prompt": subject.prompt} | pictures)


def _is_of_user(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "user"


def _read(part: Any) -> str | bytes | Address:
    match part:
        case {"type": "text" | "input_text", "text": str(text)}:
            return text
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            return picture(url)
        case {"type": "input_image"}:
            return picture({name: value for name, value in part.items() if value is not None})
    raise ValueError(_PARTS)
