"""The key that clients must send, where the front has one."""

from __future__ import annotations

import base64
import secrets

from fastapi import Request
from starlette.exceptions import HTTPException

from clients.openai_api.front import Front, FrontOf


async def authorised(request: Request, front: FrontOf) -> None:
    """Lets a request pass that has the key as its bearer token.

    Raises:
        HTTPException: it has not.
    """
    scheme, value = _sent(request)
    if not _is_key(front, value if scheme == "bearer" else ""):
        raise _refusal("Authorization must be Bearer and the key of this server", "Bearer")


async def authorised_by_password(request: Request, front: FrontOf) -> None:
    """Lets a request pass that has the key as its password, or as its bearer token; A1111's clients send a password.

    Raises:
        HTTPException: it has neither.
    """
    scheme, value = _sent(request)
    if scheme == "basic":
        try:
            value = base64.b64decode(value).decode().partition(":")[2]
        except ValueError:
            value = ""
    if not _is_key(front, value if scheme in ("basic", "bearer") else ""):
        rule = "Authorization must be Basic with the key of this server as the password, or Bearer and the key"
        raise _refusal(rule, "Basic")


def _sent(request: Request) -> tuple[str, str]:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return scheme.lower(), value.strip()


def _is_key(front: Front, value: str) -> bool:
    return front.api_key is None or secrets.compare_digest(value.encode(), front.api_key.encode())


def _refusal(sentence: str, scheme: str) -> HTTPException:
    return HTTPException(401, sentence, {"WWW-Authenticate": scheme})
