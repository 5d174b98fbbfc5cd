"""What ends a request other than its picture: outcomes, and the errors that name theirs; light to import."""

from __future__ import annotations

from enum import Enum


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
    """The message for the client; an unexpected error is named."""
    return str(error) if Outcome.of(error) is not Outcome.ERROR else f"{type(error).__name__}: {error}"
