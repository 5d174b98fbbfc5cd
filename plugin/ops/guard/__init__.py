"""The guard: the only process of `serve` that listens on a network. Triton listens on sockets in a private folder.

Triton 24.10 trusts its clients: JSON nested deeply, a body in a million chunks, a shape of 2**36 values, a
classification of text and the header `triton_grpc_error` each can end it with one small request. The guard reads each
request with well-kept servers (uvicorn, gRPC's own), checks it, and hands on what is sound. It also checks the key of
requests that control the server.

In reading order: `bodies` (what is checked), `over_http`, `over_grpc`, `__main__` (the process), `process`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tls:
    """The files of TLS on the gRPC port, as tritonserver names them.

    Attributes:
        certificate, key: of the server, in PEM.
        root: the certificates of clients' authorities, in PEM; None for the system's.
        mutual: whether clients must show a certificate.
    """

    certificate: str
    key: str
    root: str | None = None
    mutual: bool = False


@dataclass(frozen=True)
class GuardConfig:
    """What a guard opens, and what it leads to.

    Attributes:
        host: the address to listen on; a name, IPv4 or IPv6.
        http_port, grpc_port, metrics_port: None for one that stays closed.
        sockets: the folder of Triton's sockets.
        control_key: what requests that control the server must carry.
        tls: of the gRPC port; None for none.
        connections: gRPC's own options for clients' connections, as how long one may last.
    """

    host: str
    http_port: int | None
    grpc_port: int | None
    metrics_port: int | None
    sockets: str
    control_key: str = field(repr=False)
    tls: Tls | None = None
    connections: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> str:
        """For the guard's standard input, which only its user can read."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GuardConfig:
        """What `to_json` wrote."""
        values = json.loads(text)
        tls = values.pop("tls")
        connections = tuple((name, number) for name, number in values.pop("connections"))
        return cls(**values, tls=tls and Tls(**tls), connections=connections)


def http_socket(folder: Path | str) -> Path:
    """Triton's HTTP, in the folder of its sockets."""
    return Path(folder) / "http"


def metrics_socket(folder: Path | str) -> Path:
    """Triton's metrics."""
    return Path(folder) / "metrics"


def grpc_socket(folder: Path | str) -> Path:
    """Triton's gRPC, whose name ends with the port that Triton puts there."""
    return Path(folder) / "grpc:1"


def address(host: str, port: int) -> str:
    """host:port, as URLs write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
