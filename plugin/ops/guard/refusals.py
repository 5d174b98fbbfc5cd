"""Why the guard answers a request itself."""

from __future__ import annotations

CLASSIFICATION = (
    "parameter classification of an output is given, must be left out: with an output of text it ends Triton, "
    "which divides by zero"
)


class Refused(Exception):
    """A request that does not reach Triton; the message says why.

    Attributes:
        status: of the answer over HTTP.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
