"""Who may control a server: load and unload models, register shared memory, change tracing and logging.

`serve` keeps explicit model control, which its watch needs; over the network Triton asks for a key.
"""

from __future__ import annotations

import re
import secrets

ENVIRONMENT = "TAYLORSEER_CONTROL_KEY"
_HEADER = "taylorseer-control-key"
_APIS = "model-repository,shared-memory,trace,logging"  # what reaches beyond a request


class InvalidKey(ValueError):
    """A key that tritonserver would not read as it was meant; the message names the range."""


def new_key() -> str:
    """A random key."""
    return secrets.token_hex(16)


def check_key(key: str) -> None:
    """Checks a key that was given.

    Raises:
        InvalidKey: fewer than 16 characters, or others than letters, digits, - and _.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", key):
        raise InvalidKey(f"{ENVIRONMENT} has {len(key)} characters, must be 16 or more letters, digits, - or _")


def restrictions(key: str) -> list[str]:
    """The options of tritonserver that ask for a key on both protocols."""
    return [f"--http-restricted-api={_APIS}:{_HEADER}={key}", f"--grpc-restricted-protocol={_APIS}:{_HEADER}={key}"]


def http_headers(key: str) -> dict[str, str]:
    """What an HTTP request to control a server carries."""
    return {_HEADER: key}


def grpc_headers(key: str) -> dict[str, str]:
    """What a gRPC call to control a server carries; Triton (24.10) puts a prefix before the name there."""
    return {f"triton-grpc-protocol-{_HEADER}": key}
