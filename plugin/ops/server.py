"""Starts and stops a tritonserver: the one on PATH (a container's), or else the one in the nvidia-pytriton wheel."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from plugin.ops.control import InvalidKey, check_key, new_key, restrictions
from plugin.paths import ROOT, default_cache_dir, lock_file
from plugin.repository import called_models, models_to_download, stream_models

EXIT_TIMEOUT_S = 30  # what tritonserver grants requests in flight when it is told to stop
_LATE_S = 10  # how much later it is killed: after that time 24.10 still waits for streams that are open
# What tritonserver grants a model's process until it says that it is there, 30 s by default: on a busy machine Python
# can take longer, and 24.10 then waits for ever for that process to end.
_STUB_TIMEOUT_S = 120
_STUB = "triton_python_backend_stub"
_SHARED_MEMORY = Path("/dev/shm")  # where Linux shows POSIX shared memory


class ServerError(Exception):
    """The server cannot be started or has died; the message says why and what to do."""


@dataclass(frozen=True)
class ServerConfig:
    """How to start a server.

    Attributes:
        model_repository: an existing folder of models.
        host: the address that all three ports listen on.
        http_port, grpc_port, metrics_port: free TCP ports, all different.
        models: the served models by name, each meaning also its `<name>_stream`; empty for all that need no download.
        extra_args: further arguments of tritonserver.
        control_key: what whoever loads and unloads models over the network must send (`plugin.ops.control`).
        memory_prefix: how the names of the server's shared memory begin, so that it can be told from that of others.
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
        """Seconds that a server has to end in: what it grants requests in flight, and some more."""
        given = re.findall(r"--exit-timeout-secs[= ](\d+)", " ".join(self.extra_args))
        return float(given[-1] if given else EXIT_TIMEOUT_S) + _LATE_S


@dataclass(frozen=True)
class Installation:
    """A tritonserver that was found: its binary, its backends (None for its own), and the environment it needs."""

    binary: Path
    backends: Path | None
    environment: dict[str, str]


def find_installation() -> Installation:
    """The tritonserver to run.

    Raises:
        ServerError: none is installed, or the wheel has none for this Python version.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return Installation(Path(on_path), None, {})
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            "tritonserver is not on PATH and the wheel that ships one is not installed: "
            "run in NVIDIA's Triton container, or `pip install --no-deps nvidia-pytriton==0.7.0`"
        )
    package = Path(spec.submodule_search_locations[0])
    libraries = [str(package.parent / "nvidia_pytriton.libs")]
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        # The stub must load the libpython of this very interpreter, not whichever the system has.
        libraries.insert(0, sysconfig.get_config_var("LIBDIR"))
    libraries.append(os.environ.get("LD_LIBRARY_PATH", ""))
    environment = {
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }
    return Installation(package / "tritonserver/bin/tritonserver", _prepare_backends(package), environment)


def command(config: ServerConfig, installation: Installation) -> tuple[list[str], dict[str, str]]:
    """The argument list and the whole environment of a tritonserver process.

    Model control is explicit, so that a model that has failed can leave service by itself and readiness tells; from
    outside it takes the key.

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
        for path in (config.model_repository, installation.backends):
            if " " in str(path):  # tritonserver 2.51 splits the command line of its stub there and then waits for ever
                raise ServerError(f"path {str(path)!r} has a space, must have none for this tritonserver")
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
    if not config.model_repository.is_dir():
        raise ServerError(f"model repository {config.model_repository} is not a folder")
    for name in _models_to_load(config):
        if name != "*" and not (config.model_repository / name / "config.pbtxt").is_file():
            known = sorted(path.parent.name for path in config.model_repository.glob("*/config.pbtxt"))
            raise ServerError(f"model {name!r} is not in {config.model_repository}, must be one of: {', '.join(known)}")
    ports = {"http": config.http_port, "grpc": config.grpc_port, "metrics": config.metrics_port}
    if len(set(ports.values())) < len(ports):
        raise ServerError(f"ports are {', '.join(f'{name} {port}' for name, port in ports.items())}, must all differ")
    for name, port in ports.items():
        if not 1 <= port <= 65535:
            raise ServerError(f"{name} port is {port}, must be from 1 to 65535")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.host, port))
            except OSError as error:
                raise ServerError(
                    f"{name} port {port} on {config.host} cannot be used ({error.strerror}): choose --{name}-port"
                ) from None


def free_ports(count: int) -> list[int]:
    """TCP ports on the loopback address that are free now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass
class Server:
    """A tritonserver process of ours; a context manager that starts it, waits for it and stops it.

    Args:
        config: how to start it.
        log: a file for what it prints; None for a temporary one.
        ready_timeout_s: seconds that loading may take within `with`.
        on_progress: called with a sentence while models load.
    """

    config: ServerConfig
    log: Path | None = None
    ready_timeout_s: float = 600.0
    on_progress: Callable[[str], None] | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

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
            self.process = _spawn(arguments, environment, output)

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
        _wait_for_metrics(self.config)

    def stop(self) -> None:
        """Stops the process by its id: asks, waits, then kills it and what it has left behind in its own group."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(self.config.stop_timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            _clean_up(self.process.pid, self.config.memory_prefix)

    def failure(self) -> str:
        """Why loading failed, as the log tells: the first error of a model or option, else the log's end."""
        assert self.log is not None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "failed to load '" in line and "version" in line]
        errors += [line for line in lines if "unrecognized option" in line]
        reason = errors[0].split('] "', 1)[-1].rstrip('"') if errors else "\n".join(lines[-15:])
        return f"{reason} (log: {self.log})"

    def _stage(self) -> str:
        assert self.log is not None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.split('"')[1] for line in lines if '"' in line and "_stream: " in line]
        return told[-1] if told else "starting tritonserver"


def run_foreground(config: ServerConfig, on_ready: Callable[[], None], say: Callable[[str], None]) -> int:
    """Runs a server on this terminal until it ends or a signal asks it to, and looks after its models meanwhile.

    SIGTERM, SIGINT and SIGHUP are handed on as SIGTERM: tritonserver then finishes the requests in flight. One that has
    not ended `config.stop_timeout_s` later is killed.

    Args:
        config: how to start it.
        on_ready: called once it is ready.
        say: told when a model is loaded again, or the server restarted.

    Returns:
        The server's exit code, 128 + n where signal n killed it.
    """
    check(config)
    foreground = _Foreground(config, on_ready, say)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: foreground.stop())
    code = foreground.run()
    while foreground.restarting:
        code = foreground.run()
    return code if code >= 0 else 128 - code


class _Foreground:
    """A server on this terminal; `stop` and `restart` may be called from a signal handler or another thread."""

    def __init__(self, config: ServerConfig, on_ready: Callable[[], None], say: Callable[[str], None]) -> None:
        self._config = config
        self._on_ready = on_ready
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._kill_at = float("inf")
        self.restarting = False

    def run(self) -> int:
        """Starts the server and returns its exit code."""
        from plugin.ops.watch import Watch

        config = self._config
        self.restarting = False
        self._kill_at = float("inf")
        models = stream_models(config.model_repository)
        url = f"{config.host}:{config.grpc_port}"
        self._process = process = _spawn(*command(config, find_installation()), None)
        watch = Watch(url, models, self.restart, self._say, server_pid=process.pid, control_key=config.control_key)
        if self._stopping:  # asked to between two runs
            process.terminate()
        try:
            told = False
            while process.poll() is None:
                if not told and is_ready(f"{config.host}:{config.http_port}"):
                    told = True
                    _wait_for_metrics(config)
                    self._on_ready()
                    watch.start()
                if time.monotonic() > self._kill_at:
                    process.kill()
                time.sleep(0.2)
            return process.returncode
        finally:
            watch.stop()
            _clean_up(process.pid, config.memory_prefix)

    def stop(self) -> None:
        """Asks the server to end, after the requests in flight."""
        self._stopping = True
        self.restarting = False
        self._end()

    def restart(self) -> None:
        """Ends the server, to be run again."""
        if not self._stopping:
            self.restarting = True
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
        self._kill_at = min(self._kill_at, time.monotonic() + self._config.stop_timeout_s)


def is_ready(http_url: str) -> bool:
    """Whether a server answers at host:port and has all its models loaded."""
    try:
        with urllib.request.urlopen(f"http://{http_url}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait_for_metrics(config: ServerConfig, timeout_s: float = 2.0) -> None:
    """Waits until a server that is ready has its metrics up too: Triton starts them last, or not at all where an option
    says so."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((config.host, config.metrics_port), timeout=timeout_s):
            return
        time.sleep(0.02)


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
    """The models that one served model is made of, those that others call first."""
    return [*called_models(repository, name, os.environ), f"{name}_stream", name]


def _spawn(arguments: list[str], environment: dict[str, str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    # A session of its own: a Ctrl-C on the terminal reaches the server once, through us, and not its stubs.
    return subprocess.Popen(
        arguments,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
    )


def _clean_up(pid: int, memory_prefix: str) -> None:
    """Ends what a server that has ended leaves behind in its own process group, and removes its lock files and, where
    it was killed, its shared memory: a megabyte or more of each process, which is nobody's any more."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    locks = lock_file(pid, "*")
    for path in (*locks.parent.glob(locks.name), *_SHARED_MEMORY.glob(f"{memory_prefix}*")):
        path.unlink(missing_ok=True)


def _prepare_backends(package: Path) -> Path:
    """A writable copy of the wheel's Python backend with this Python's stub in it."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    source = package / "tritonserver"
    stub = source / "python_backend_stubs" / python / _STUB
    if not stub.is_file():
        known = sorted(path.name for path in (source / "python_backend_stubs").iterdir())
        raise ServerError(f"the wheel's server has no stub for Python {python}, must be one of: {', '.join(known)}")
    target = default_cache_dir() / f"backends-{version('nvidia-pytriton')}-py{python}"
    if not target.exists():
        try:
            _copy_backends(source / "backends" / "python", stub, target)
        except OSError as error:
            raise ServerError(
                f"the server's backends cannot be copied to {target} ({error.strerror}): "
                "name a writable folder in TRITON_TAYLORSEER_CACHE"
            ) from error
    return target


def _copy_backends(backend: Path, stub: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        shutil.copytree(backend, scratch / "python")
        shutil.copy(stub, scratch / "python" / _STUB)
        (scratch / "python" / _STUB).chmod(0o755)
        scratch.rename(target)
    except OSError:
        shutil.rmtree(scratch)
        if not target.exists():  # else another process was faster
            raise
