"""Starts and stops a tritonserver: `Server`, a context manager."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from plugin.ops.process import ServerProcess
from plugin.ops.running import Running
from plugin.ops.server_config import EXIT_TIMEOUT_S, ServerConfig, ServerError, check, command, free_ports

__all__ = ["EXIT_TIMEOUT_S", "Server", "ServerConfig", "ServerError", "check", "command", "free_ports"]


@dataclass
class Server:
    """A tritonserver; a context manager that starts it, waits until it is ready and stops it.

    Args:
        config: how to start it.
        log: a file for what it prints; None for a temporary one.
        ready_timeout_s: seconds that loading may take within `with`.
        on_progress: called with a sentence while models load.

    Attributes:
        running: the server and its guard, from `start` on.
    """

    config: ServerConfig
    log: Path | None = None
    ready_timeout_s: float = 600.0
    on_progress: Callable[[str], None] | None = None
    running: Running | None = field(default=None, init=False)

    @property
    def process(self) -> ServerProcess | None:
        """The tritonserver process, from `start` on."""
        return None if self.running is None else self.running.process

    @property
    def http_url(self) -> str:
        """host:port of the HTTP endpoint."""
        return self.config.http_url

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC endpoint."""
        return self.config.grpc_url

    @property
    def metrics_url(self) -> str:
        """The URL of the metrics."""
        return self.config.metrics_url

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
            ServerError: what `check` finds, or no tritonserver.
        """
        check(self.config)
        if self.log is None:
            descriptor, path = tempfile.mkstemp(prefix="triton-", suffix=".log")
            os.close(descriptor)
            self.log = Path(path)
        with self.log.open("wb") as output:
            self.running = Running(self.config, output)

    def wait_ready(self, timeout_s: float) -> None:
        """Returns once all models are loaded.

        Raises:
            ServerError: the server died, with the reason from its log, or the time is up.
        """
        assert self.running is not None, "start() comes first"
        process = self.running.process
        deadline = time.monotonic() + timeout_s
        while not self.running.is_ready():
            if process.poll() is not None:
                raise ServerError(f"tritonserver ended with code {process.returncode}: {self.failure()}")
            if self.running.guard_ended() is not None:
                raise ServerError(f"the guard ended: {self.failure()}")
            if time.monotonic() > deadline:
                raise ServerError(f"tritonserver was not ready after {timeout_s:.0f} s: {self.failure()}")
            if self.on_progress:
                self.on_progress(self._stage())
            time.sleep(0.1)
        self.running.wait_for_metrics()

    def stop(self) -> None:
        """Asks the process to end, waits, kills it where that takes too long, and removes what it has left behind."""
        if self.running is None:
            return
        self.running.process.terminate(kill_after_s=self.config.stop_timeout_s)
        try:
            self.running.process.wait()
        finally:
            self.running.clean_up()

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
