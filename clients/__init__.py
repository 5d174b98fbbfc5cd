"""Python clients of the served models."""

from clients.client import (
    Cancelled,
    Client,
    DeadlineExceeded,
    Generation,
    GenerationError,
    InvalidArgument,
    Progress,
    Unavailable,
)

__all__ = [
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Generation",
    "GenerationError",
    "InvalidArgument",
    "Progress",
    "Unavailable",
]
