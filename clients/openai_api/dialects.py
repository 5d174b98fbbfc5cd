"""What differs between the APIs that pictures are asked for through: the form of answers and of a stream's events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from triton_taylorseer_client.messages import Generation, Progress


class Events(Protocol):
    """A stream's events, each the text of a whole server-sent event. What has a picture encodes it when it is asked."""

    def begun(self) -> Iterator[str]:
        """Before anything else."""

    def progressed(self, update: Progress) -> Iterator[str]:
        """After each step."""

    def done(self, result: Generation) -> Iterator[str]:
        """At the end, with the picture."""

    def failed(self, error: dict[str, Any]) -> Iterator[str]:
        """At the end, with OpenAI's error object."""


class Dialect(Protocol):
    """How an API answers one request."""

    def answer(self, results: list[Generation]) -> dict[str, Any]:
        """The answer of a request without `stream`, to one picture or more."""

    def events(self) -> Events:
        """The events of a request with `stream`."""
