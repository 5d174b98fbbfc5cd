"""Who may control a server: load and unload models, register shared memory, change tracing and logging.

`serve` keeps explicit model control, which its watch needs; from the network the guard asks for a key. The key is on no
command line, where any user of the machine could read it.
"""

from __future__ import annotations

import re
import secrets

ENVIRONMENT = "TAYLORSEER_CONTROL_KEY"
HTTP_HEADER = "taylorseer-control-key"
GRPC_HEADER = f"triton-grpc-protocol-{HTTP_HEADER}"
# What affects more than one request: model control, shared memory, tracing, logging.
GRPC_METHODS = frozenset(
    {
        *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
        *(f"{kind}SharedMemory{what}" for kind in ("System", "Cuda") for what in ("Status", "Register", "Unregister")),
        *("TraceSetting", "LogSettings"),
    }
)


class InvalidKey(ValueError):
    """A key that tritonserver would read as something else; the message names the range."""


def new_key() -> str:
    """A random key."""
    return secrets.token_hex(16)


def check_key(key: str) -> None:
    """Checks a key that was given.

    Raises:
        InvalidKey: it has fewer than 16 characters, or one that is not a letter, a digit, - or _.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", key):
        raise InvalidKey(f"{ENVIRONMENT} has {len(key)} characters, must be 16 or more letters, digits, - or _")


def http_headers(key: str) -> dict[str, str]:
    """The headers of an HTTP request that controls a server."""
    return {HTTP_HEADER: key}


def grpc_headers(key: str) -> dict[str, str]:
    """The headers of a gRPC call that controls a server; the prefix is Triton's own for restricted protocols."""
    return {GRPC_HEADER: key}
