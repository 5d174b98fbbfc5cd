"""The options of tritonserver that follow `--`, some of which are the guard's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plugin.ops.guard import Tls
from plugin.ops.installation import ServerError

_ALLOW = ("allow-http", "allow-grpc", "allow-metrics")
_TLS = ("grpc-use-ssl", "grpc-use-ssl-mutual", "grpc-server-cert", "grpc-server-key", "grpc-root-cert")
_OWN = {
    **{f"{port}-port": f"--{port}-port before the --" for port in ("http", "grpc", "metrics")},
    **{f"{port}-address": "--host before the --" for port in ("http", "grpc", "metrics")},
    **{f"reuse-{port}-port": "a port for each server" for port in ("http", "grpc")},
}
_TRUE, _FALSE = ("1", "true", "on"), ("0", "false", "off")


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        http, grpc, metrics: whether the port is opened.
        tls: of the gRPC port, or None.
        rest: what goes to tritonserver.
    """

    http: bool
    grpc: bool
    metrics: bool
    tls: Tls | None
    rest: tuple[str, ...]

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
        return cls(http, grpc, metrics, _tls(given), rest)


def _read(arguments: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The options that are not tritonserver's, by name, and the other arguments."""
    given: dict[str, str] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in (*_ALLOW, *_TLS, *_OWN):
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


def _is_true(name: str, text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ServerError(f"option --{name} is {text!r}, must be one of: {', '.join((*_TRUE, *_FALSE))}")
    return text.lower() in _TRUE
