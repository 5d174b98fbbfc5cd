"""Who may control a server: load and unload models, register shared memory, change tracing and logging.

`serve` keeps explicit model control, which its watch needs; over the network Triton asks for a key.
"""

from __future__ import annotations

import re
import secrets

ENVIRONMENT = "TAYLORSEER_CONTROL_KEY"
_HEADER = "taylorseer-control-key"
_APIS = "model-repository,shared-memory,trace,logging"  # those that affect more than one request


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


def restrictions(key: str) -> list[str]:
    """The options of tritonserver that ask for a key on both protocols."""
    return [f"--http-restricted-api={_APIS}:{_HEADER}={key}", f"--grpc-restricted-protocol={_APIS}:{_HEADER}={key}"]


def http_headers(key: str) -> dict[str, str]:
    """The headers of an HTTP request that controls a server."""
    return {_HEADER: key}


def grpc_headers(key: str) -> dict[str, str]:
    """The headers of a gRPC call that controls a server; Triton (24.10) expects a prefix before the name."""
    return {f"triton-grpc-protocol-{_HEADER}": key}
