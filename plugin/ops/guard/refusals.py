"""Why the guard answers a request itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

CLASSIFICATION = (
    "parameter classification of an output is given, must be left out: with an output of text it ends Triton, "
    "which divides by zero"
)


class Room:
    """The memory for the bodies of requests that are being handed on, bounded together.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    @contextmanager
    def of(self, nbytes: int) -> Iterator[None]:
        """Takes room until the context ends.

        Raises:
            Refused: there is not enough now.
        """
        if self._taken and self._taken + nbytes > self._most:
            raise Refused(f"the bodies of other requests take {self._taken} bytes: try again in 1 s", 503)
        self._taken += nbytes
        try:
            yield
        finally:
            self._taken -= nbytes


class Refused(Exception):
    """A request that does not reach Triton; the message says why.

    Attributes:
        status: of the answer over HTTP.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
