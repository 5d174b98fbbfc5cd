"""The options of tritonserver that follow `--`, some of which are the guard's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plugin.ops.guard import Tls
from plugin.ops.installation import ServerError

_ALLOW = ("allow-http", "allow-grpc", "allow-metrics")
_TLS = ("grpc-use-ssl", "grpc-use-ssl-mutual", "grpc-server-cert", "grpc-server-key", "grpc-root-cert")
# What tritonserver says of its clients' connections, as gRPC names it.
_CONNECTIONS = {
    "grpc-keepalive-time": "grpc.keepalive_time_ms",
    "grpc-keepalive-timeout": "grpc.keepalive_timeout_ms",
    "grpc-keepalive-permit-without-calls": "grpc.keepalive_permit_without_calls",
    "grpc-http2-max-pings-without-data": "grpc.http2.max_pings_without_data",
    "grpc-http2-min-recv-ping-interval-without-data": "grpc.http2.min_ping_interval_without_data_ms",
    "grpc-http2-max-ping-strikes": "grpc.http2.max_ping_strikes",
    "grpc-max-connection-age": "grpc.max_connection_age_ms",
    "grpc-max-connection-age-grace": "grpc.max_connection_age_grace_ms",
}
_OWN = {
    **{f"{port}-port": f"--{port}-port before the --" for port in ("http", "grpc", "metrics")},
    **{f"{port}-address": "--host before the --" for port in ("http", "grpc", "metrics")},
    **{f"reuse-{port}-port": "a port for each server" for port in ("http", "grpc")},
    **{f"allow-{door}": "the HTTP port, since no guard is before that one" for door in ("sagemaker", "vertex-ai")},
}
_TRUE, _FALSE = ("1", "true", "on"), ("0", "false", "off")


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        http, grpc, metrics: whether the port is opened.
        tls: of the gRPC port, or None.
        rest: what goes to tritonserver.
        connections: what holds for clients' gRPC connections, as gRPC's own options.
    """

    http: bool
    grpc: bool
    metrics: bool
    tls: Tls | None
    rest: tuple[str, ...]
    connections: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Options:
        """Reads the arguments as tritonserver does: `--name=value` or `--name value`.

        Raises:
            ServerError: one of them has to be said otherwise, or TLS lacks a file.
        """
        given, rest = _read(arguments)
        for name, instead in _OWN.items():
            if name in given:
                raise ServerError(f"option --{name} after the -- is given, must be left out: use {instead}")
        http, grpc, metrics = (_is_true(name, given.get(name, "true")) for name in _ALLOW)
        connections = tuple((_CONNECTIONS[name], _number(name, given[name])) for name in given if name in _CONNECTIONS)
        return cls(http, grpc, metrics, _tls(given), rest, connections)


def _read(arguments: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The options that are not tritonserver's, by name, and the other arguments."""
    given: dict[str, str] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in (*_ALLOW, *_TLS, *_OWN, *_CONNECTIONS):
            rest.append(argument)
        elif equals:
            given[name] = value
        else:
            given[name] = left.pop(0) if left and not left[0].startswith("--") else "true"
    return given, tuple(rest)


def _tls(given: dict[str, str]) -> Tls | None:
    if not _is_true("grpc-use-ssl", given.get("grpc-use-ssl", "false")):
        if files := [name for name in _TLS if name in given and name != "grpc-use-ssl"]:
            raise ServerError(f"option --{files[0]} is given, must come with --grpc-use-ssl=true")
        return None
    for name in ("grpc-server-cert", "grpc-server-key"):
        if name not in given:
            raise ServerError(f"option --{name} is missing, must name a file in PEM: --grpc-use-ssl is given")
    mutual = _is_true("grpc-use-ssl-mutual", given.get("grpc-use-ssl-mutual", "false"))
    tls = Tls(given["grpc-server-cert"], given["grpc-server-key"], given.get("grpc-root-cert"), mutual)
    for path in filter(None, (tls.certificate, tls.key, tls.root)):
        try:
            open(path, "rb").close()
        except OSError as error:
            raise ServerError(f"the file {path} of TLS cannot be read: {error.strerror}") from None
    return tls


def _number(name: str, text: str) -> int:
    """A number as gRPC takes it; tritonserver's switch is one as well."""
    if text.lower() in (*_TRUE, *_FALSE):
        return int(_is_true(name, text))
    if not text.isascii() or not text.isdecimal() or int(text) > 2**31 - 1:
        raise ServerError(f"option --{name} is {text!r}, must be a whole number from 0 to {2**31 - 1}")
    return int(text)


def _is_true(name: str, text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ServerError(f"option --{name} is {text!r}, must be one of: {', '.join((*_TRUE, *_FALSE))}")
    return text.lower() in _TRUE
