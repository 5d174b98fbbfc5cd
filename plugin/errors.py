"""What ends a request other than its picture: outcomes, and the errors that name theirs; light to import."""

from __future__ import annotations

import re
from enum import Enum

MAX_MESSAGE_BYTES = 1000
_CUT = " […] "
_PATH = re.compile(r"(?<![\w.])/(?:[^\s/:'\"]+/)+(?=[^\s/:'\"]+)")  # the folders of a file


class Outcome(Enum):
    """How a request ended: the label in the metrics, and Triton's code for it (None where there is no error).

    An error that is no `RequestError` is unexpected: `ERROR`.
    """

    OK = "ok", None
    INVALID = "invalid", "INVALID_ARG"
    UNAVAILABLE = "unavailable", "UNAVAILABLE"
    CANCELLED = "cancelled", "CANCELLED"
    DEADLINE = "deadline", "CANCELLED"
    ERROR = "error", "INTERNAL"

    def __init__(self, label: str, code: str | None) -> None:
        self.label = label
        self.code = code

    @classmethod
    def of(cls, error: BaseException | None) -> Outcome:
        """The outcome of a request that ended with this error, or with none."""
        if error is None:
            return cls.OK
        return error.outcome if isinstance(error, RequestError) else cls.ERROR


class RequestError(Exception):
    """Ends a request, whose client gets the message; a subclass says with what outcome."""

    outcome: Outcome = Outcome.ERROR


class InvalidRequest(RequestError, ValueError):
    """A field of a request is missing or out of its range; the message names field, value and range."""

    outcome = Outcome.INVALID


class Unavailable(RequestError):
    """The model cannot serve now; the same request may succeed later."""

    outcome = Outcome.UNAVAILABLE


class Cancelled(RequestError):
    """The client gave the request up."""

    outcome = Outcome.CANCELLED


class DeadlineError(RequestError):
    """The request's deadline has passed, or cannot be met."""

    outcome = Outcome.DEADLINE


class DeadlinePassed(DeadlineError):
    """The deadline passed before the request was done."""


class DeadlineCannotBeMet(DeadlineError):
    """No schedule that the model allows is fast enough; the message says what would be needed."""


def message_of(error: BaseException) -> str:
    """The message for the client, of at most `MAX_MESSAGE_BYTES`; an unexpected error is named, and its text has no
    paths of the server."""
    if Outcome.of(error) is not Outcome.ERROR:
        return shortened(str(error))
    text = str(error).split("\n\nAt:\n")[0]  # what pybind adds: the Python stack, with files
    return shortened(f"{type(error).__name__}: {_PATH.sub('…', text)}")


def shortened(text: str, most: int = MAX_MESSAGE_BYTES) -> str:
    """A text that can be sent, of at most that many bytes of UTF-8: what is too long loses its middle, where a value is
    quoted, and keeps the field's name and the range.

    gRPC answers "Stream removed" in place of an error whose text has more than 8 KB.
    """
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= most:
        return data.decode()
    half = (most - len(_CUT.encode())) // 2
    return data[:half].decode(errors="ignore") + _CUT + data[-half:].decode(errors="ignore")
