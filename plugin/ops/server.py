"""Starts and stops a tritonserver: how it is configured, its command line, and `Server`, a context manager."""

from __future__ import annotations

import os
import re
import secrets
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from plugin.ops.control import InvalidKey, check_key, new_key, restrictions
from plugin.ops.installation import Installation, ServerError, find_installation
from plugin.ops.process import ServerProcess
from plugin.paths import ROOT
from plugin.repository import called_models, models_to_download

__all__ = [
    "EXIT_TIMEOUT_S",
    "Server",
    "ServerConfig",
    "ServerError",
    "check",
    "command",
    "free_ports",
    "is_ready",
    "wait_for_metrics",
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
        host: the address that all three ports listen on.
        http_port, grpc_port, metrics_port: free TCP ports, all different.
        models: the served models by name, each meaning also its `<name>_stream`; empty for all that need no download.
        extra_args: further arguments of tritonserver.
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


def command(config: ServerConfig, installation: Installation) -> tuple[list[str], dict[str, str]]:
    """The argument list and the whole environment of a tritonserver process.

    Model control is explicit: the watch can then load a model that has failed again, and readiness reports the failure.
    From outside, model control needs the key.

    Raises:
        ServerError: the wheel's server would have to load from a path with a space in it.
    """
    arguments = [
        str(installation.binary),
        f"--model-repository={config.model_repository}",
        "--model-control-mode=explicit",
        *restrictions(config.control_key),
        *(f"--load-model={name}" for name in _models_to_load(config)),
        f"--http-address={config.host}",
        f"--grpc-address={config.host}",
        f"--metrics-address={config.host}",
        f"--http-port={config.http_port}",
        f"--grpc-port={config.grpc_port}",
        f"--metrics-port={config.metrics_port}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,stub-timeout-seconds={_STUB_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={config.memory_prefix}",
    ]
    if installation.backends:
        _check_spaces(config.model_repository, installation.backends)
        arguments.append(f"--backend-directory={installation.backends}")
    python_path = ":".join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}  # their warnings drown the server's log
    environment = {**quiet, **os.environ, **installation.environment, "PYTHONPATH": python_path}
    return [*arguments, *config.extra_args], environment


def check(config: ServerConfig) -> None:
    """Checks what can be known before starting.

    Raises:
        ServerError: the repository or a model in it does not exist, the control key is not one, or a port is no port,
            given twice or taken.
    """
    try:
        check_key(config.control_key)
    except InvalidKey as error:
        raise ServerError(str(error)) from None
    _check_models(config)
    ports = {"http": config.http_port, "grpc": config.grpc_port, "metrics": config.metrics_port}
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


@dataclass
class Server:
    """A tritonserver; a context manager that starts it, waits until it is ready and stops it.

    Args:
        config: how to start it.
        log: a file for what it prints; None for a temporary one.
        ready_timeout_s: seconds that loading may take within `with`.
        on_progress: called with a sentence while models load.

    Attributes:
        process: the process, from `start` on.
    """

    config: ServerConfig
    log: Path | None = None
    ready_timeout_s: float = 600.0
    on_progress: Callable[[str], None] | None = None
    process: ServerProcess | None = field(default=None, init=False)

    @property
    def http_url(self) -> str:
        """host:port of the HTTP endpoint."""
        return f"{self.config.host}:{self.config.http_port}"

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{self.config.host}:{self.config.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """The URL of the metrics."""
        return f"http://{self.config.host}:{self.config.metrics_port}/metrics"

    def __enter__(self) -> Server:
        self.start()
        try:
            self.wait_ready(self.ready_timeout_s)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the process.

        Raises:
            ServerError: no tritonserver, no such repository, or a port is taken.
        """
        check(self.config)
        arguments, environment = command(self.config, find_installation())
        if self.log is None:
            descriptor, path = tempfile.mkstemp(prefix="triton-", suffix=".log")
            os.close(descriptor)
            self.log = Path(path)
        with self.log.open("wb") as output:
            self.process = ServerProcess(arguments, environment, self.config.memory_prefix, output)

    def wait_ready(self, timeout_s: float) -> None:
        """Returns once all models are loaded.

        Raises:
            ServerError: the server died, with the reason from its log, or the time is up.
        """
        assert self.process is not None, "start() comes first"
        deadline = time.monotonic() + timeout_s
        while not is_ready(self.http_url):
            if self.process.poll() is not None:
                raise ServerError(f"tritonserver ended with code {self.process.returncode}: {self.failure()}")
            if time.monotonic() > deadline:
                raise ServerError(f"tritonserver was not ready after {timeout_s:.0f} s: {self.failure()}")
            if self.on_progress:
                self.on_progress(self._stage())
            time.sleep(0.1)
        wait_for_metrics(self.config)

    def stop(self) -> None:
        """Asks the process to end, waits, kills it where that takes too long, and removes what it has left behind."""
        if self.process is None:
            return
        self.process.terminate(kill_after_s=self.config.stop_timeout_s)
        try:
            self.process.wait()
        finally:
            self.process.clean_up()

    def failure(self) -> str:
        """Why loading failed, from the log: the first error of a model or option, else the last lines."""
        assert self.log is not None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "failed to load '" in line and "version" in line]
        errors += [line for line in lines if "unrecognized option" in line]
        reason = errors[0].split('] "', 1)[-1].rstrip('"') if errors else "\n".join(lines[-15:])
        return f"{reason} (log: {self.log})"

    def _stage(self) -> str:
        assert self.log is not None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        stages = [line.split('"')[1] for line in lines if '"' in line and "_stream: " in line]
        return stages[-1] if stages else "starting tritonserver"


def is_ready(http_url: str) -> bool:
    """Whether a server answers at host:port and has all its models loaded."""
    try:
        with urllib.request.urlopen(f"http://{http_url}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_for_metrics(config: ServerConfig, timeout_s: float = 2.0) -> None:
    """Waits until the metrics of a server that is ready answer too, which Triton starts last. Returns without an error
    where they do not: an option can turn them off."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((config.host, config.metrics_port), timeout=timeout_s):
            return
        time.sleep(0.02)


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
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
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
