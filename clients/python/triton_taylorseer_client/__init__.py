"""Python clients of the served models."""

from triton_taylorseer_client.async_client import AsyncClient
from triton_taylorseer_client.client import Client
from triton_taylorseer_client.messages import (
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
