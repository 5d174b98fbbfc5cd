"""Python clients of the served models."""

from clients.async_client import AsyncClient
from clients.client import Client
from clients.messages import (
    Cancelled,
    DeadlineExceeded,
    Generation,
    GenerationError,
    InvalidArgument,
    Progress,
    Unavailable,
    UnknownModel,
)

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Generation",
    "GenerationError",
    "InvalidArgument",
    "Progress",
    "Unavailable",
    "UnknownModel",
]
