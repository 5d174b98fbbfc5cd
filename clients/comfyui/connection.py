"""A connection, as the Server node hands it to the others, and what can be asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from triton_taylorseer_client import AsyncClient, GenerationError, Unavailable

from .limits import Limits
from .settings import Settings
from .turns import Turns

SERVER = "TRITON_TAYLORSEER_SERVER"  # its type in ComfyUI
_ANSWER_S = 5.0  # a server that is there answers at once

T = TypeVar("T")


@dataclass(frozen=True)
class Connection:
    """Where requests go.

    ComfyUI keeps it from run to run, as the output of a node that has not changed, and with it whose turn it is.

    Attributes:
        model: the model's name.
        preview: whether pictures are shown while they are made.
        turns: the servers.
        settings: what the environment says of them.
    """

    model: str
    preview: bool
    turns: Turns
    settings: Settings

    def client(self, url: str) -> AsyncClient:
        """A client of the model on one of the servers."""
        return self.settings.client(url, self.model)


async def limits_of(client: AsyncClient, url: str) -> Limits:
    """What a model accepts.

    Raises:
        GenerationError: an unknown model, one of another kind, or a server that does not answer within 5 s.
    """
    parameters = await answered(client.parameters(), url)
    try:
        return Limits.of(parameters)
    except ValueError as error:
        raise GenerationError(f"the model's parameters cannot be read, must be triton-taylorseer's: {error}") from None


async def answered(answer: Awaitable[T], url: str) -> T:
    """An answer that a server gives at once, if it is there.

    Raises:
        Unavailable: it has not come within 5 s.
    """
    try:
        return await asyncio.wait_for(answer, _ANSWER_S)
    except asyncio.TimeoutError:  # Python 3.10 has one beside the built-in
        raise Unavailable(f"{url} has not answered within {_ANSWER_S:g} s") from None


async def served_models(client: AsyncClient, url: str) -> list[str]:
    """The models that are ready and can be asked for.

    Raises:
        GenerationError: a server that does not answer within 5 s.
    """
    names = set(await answered(client.ready_models(), url))
    return sorted(name for name in names if f"{name}_stream" in names)


async def described(client: AsyncClient) -> list[dict[str, Any]]:
    """What a model makes of pictures, a task for each of its pipelines.

    Raises:
        GenerationError: a model that does not tell, or not within 5 s.
    """
    return (await client.description(timeout_s=_ANSWER_S)).get("tasks", [])
