"""How a tritonserver is configured and checked, and its command line."""

from __future__ import annotations

import os
import re
import secrets
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from plugin.ops.control import InvalidKey, check_key, new_key
from plugin.ops.guard import GuardConfig, address, grpc_socket, http_socket, metrics_socket
from plugin.ops.http_server import listen
from plugin.ops.installation import Installation, ServerError
from plugin.ops.options import Options
from plugin.paths import python_path
from plugin.repository import called_models, models_to_download

__all__ = [
    "EXIT_TIMEOUT_S",
    "ServerConfig",
    "ServerError",
    "check",
    "command",
    "free_ports",
]

EXIT_TIMEOUT_S = 30  # how long tritonserver waits for the requests in flight when it is asked to stop
_LATE_S = 10  # it is killed that much later: after EXIT_TIMEOUT_S 24.10 still waits for streams that are open
# How long tritonserver waits for a model's process to report that it is there, 30 s by default: on a busy machine
# Python can take longer, and 24.10 then waits forever for that process to end.
_STUB_TIMEOUT_S = 120


@dataclass(frozen=True)
class ServerConfig:
    """How to start a server.

    Attributes:
        model_repository: an existing folder of models.
        host: the address that all three ports listen on: a name, IPv4 or IPv6; `::` for all of both.
        http_port, grpc_port, metrics_port: free TCP ports, all different.
        models: the served models by name, each meaning also its `<name>_stream`; empty for all that need no download.
        extra_args: further arguments of tritonserver; some of them are the guard's (`plugin.ops.options`).
        control_key: what requests that load and unload models over the network must carry (`plugin.ops.control`).
        memory_prefix: how the names of the server's shared memory begin, different for each server.
    """

    model_repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    models: tuple[str, ...] = ()
    extra_args: tuple[str, ...] = ()
    control_key: str = field(default_factory=new_key, repr=False, compare=False)
    memory_prefix: str = field(
        default_factory=lambda: f"triton_taylorseer_{secrets.token_hex(6)}_", repr=False, compare=False
    )

    @property
    def stop_timeout_s(self) -> float:
        """Seconds after which a server that was asked to end is killed."""
        given = re.findall(r"--exit-timeout-secs[= ](\d+)", " ".join(self.extra_args))
        return float(given[-1] if given else EXIT_TIMEOUT_S) + _LATE_S

    @property
    def reachable_host(self) -> str:
        """Where this machine reaches it: the loopback address where it listens on all."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def http_url(self) -> str:
        """host:port of the HTTP endpoint."""
        return address(self.reachable_host, self.http_port)

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC endpoint."""
        return address(self.reachable_host, self.grpc_port)

    @property
    def metrics_url(self) -> str:
        """The URL of the metrics."""
        return f"http://{address(self.reachable_host, self.metrics_port)}/metrics"

    @cached_property
    def options(self) -> Options:
        """What of `extra_args` is whose.

        Raises:
            ServerError: as `Options.of`.
        """
        return Options.of(self.extra_args)

    @property
    def open_ports(self) -> dict[str, int]:
        """The ports that are opened, by name."""
        ports = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        return {name: port for name, port in ports.items() if getattr(self.options, name)}

    def guard(self, sockets: Path) -> GuardConfig:
        """What its guard opens.

        Args:
            sockets: the folder of Triton's sockets.
        """
        ports = self.open_ports
        return GuardConfig(
            self.host,
            ports.get("http"),
            ports.get("grpc"),
            ports.get("metrics"),
            str(sockets),
            self.control_key,
            self.options.tls,
            self.options.connections,
        )


def command(config: ServerConfig, installation: Installation, sockets: Path) -> tuple[list[str], dict[str, str]]:
    """The argument list and the whole environment of a tritonserver process.

    Model control is explicit: the watch can then load a model that has failed again, and readiness reports the failure.
    Triton listens on no port: who reaches it has passed the guard, or is the server's user.

    Args:
        config: how to start it.
        installation: what to start.
        sockets: a private folder for its sockets.

    Raises:
        ServerError: the wheel's server would have to load from a path with a space in it.
    """
    arguments = [
        str(installation.binary),
        f"--model-repository={config.model_repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in _models_to_load(config)),
        f"--http-address=unix:{http_socket(sockets)}",
        f"--metrics-address=unix:{metrics_socket(sockets)}",
        f"--grpc-address=unix:{str(grpc_socket(sockets)).removesuffix(':1')}",
        "--grpc-port=1",  # of no meaning but in the socket's name
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,stub-timeout-seconds={_STUB_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={config.memory_prefix}",
    ]
    if installation.backends:
        _check_spaces(config.model_repository, installation.backends)
        arguments.append(f"--backend-directory={installation.backends}")
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}  # their warnings drown the server's log
    environment = {**quiet, **os.environ, **installation.environment, "PYTHONPATH": python_path()}
    environment.pop("AIP_MODE", None)  # with it Triton opens Vertex AI's port, which no guard stands before
    return [*arguments, *config.options.rest], environment


def check(config: ServerConfig) -> None:
    """Checks what can be known before starting.

    Raises:
        ServerError: the repository or a model in it does not exist, the control key is not one, a port is no port,
            given twice or taken, or an option after `--` is one that has to be said otherwise.
    """
    try:
        check_key(config.control_key)
    except InvalidKey as error:
        raise ServerError(str(error)) from None
    _check_models(config)
    ports = config.open_ports
    if len(set(ports.values())) < len(ports):
        raise ServerError(f"ports are {', '.join(f'{name} {port}' for name, port in ports.items())}, must all differ")
    for name, port in ports.items():
        _check_port(config.host, name, port)


def free_ports(count: int) -> list[int]:
    """TCP ports on the loopback address that are free now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _check_models(config: ServerConfig) -> None:
    if not config.model_repository.is_dir():
        raise ServerError(f"model repository {config.model_repository} is not a folder")
    for name in _models_to_load(config):
        if name != "*" and not (config.model_repository / name / "config.pbtxt").is_file():
            known = sorted(path.parent.name for path in config.model_repository.glob("*/config.pbtxt"))
            raise ServerError(f"model {name!r} is not in {config.model_repository}, must be one of: {', '.join(known)}")


def _check_port(host: str, name: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ServerError(f"{name} port is {port}, must be from 1 to 65535")
    try:
        for each in listen(host, port):
            each.close()
    except OSError as error:
        raise ServerError(
            f"{name} port {port} on {host} cannot be used ({error.strerror}): choose --{name}-port"
        ) from None


def _check_spaces(*paths: Path) -> None:
    """Refuses a space where tritonserver 2.51 would split the command line of its stub, and then wait forever."""
    for path in paths:
        if " " in str(path):
            raise ServerError(f"path {str(path)!r} has a space, must have none for this tritonserver")


def _models_to_load(config: ServerConfig) -> list[str]:
    if not config.models:
        missing = models_to_download(config.model_repository, os.environ)
        left_out = {each for name in missing for each in _parts_of(name, config.model_repository)}
        if not left_out:
            return ["*"]
        return sorted(
            path.name for path in config.model_repository.iterdir() if path.is_dir() and path.name not in left_out
        )
    wanted = [name.removesuffix("_stream") for name in config.models]
    return [*dict.fromkeys(each for name in wanted for each in _parts_of(name, config.model_repository))]


def _parts_of(name: str, repository: Path) -> list[str]:
    """The models that one served model is made of, each after those that it calls."""
    return [*called_models(repository, name, os.environ), f"{name}_stream", name]
