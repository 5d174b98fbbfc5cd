"""Runs a tritonserver on this terminal until it ends or a signal stops it; restarts it when its watch asks for that."""

from __future__ import annotations

import signal
from collections.abc import Callable

from plugin.ops.installation import find_installation
from plugin.ops.process import ServerProcess
from plugin.ops.server import ServerConfig, check, command, is_ready, wait_for_metrics
from plugin.ops.watch import Watch
from plugin.repository import stream_models

_LOOK_S = 0.2  # how often it is checked whether the server is ready


def run_foreground(config: ServerConfig, on_ready: Callable[[], None], say: Callable[[str], None]) -> int:
    """Runs a server until it ends or a signal asks it to, and watches its models meanwhile.

    SIGTERM, SIGINT and SIGHUP are passed on as SIGTERM: tritonserver then finishes the requests in flight. It is killed
    where it has not ended `config.stop_timeout_s` later.

    Args:
        config: how to start it.
        on_ready: called each time it is ready.
        say: called with a sentence when a model is loaded again or the server is restarted.

    Returns:
        The server's exit code, 128 + n where signal n killed it.

    Raises:
        ServerError: it cannot be started; the message says why.
    """
    check(config)
    foreground = Foreground(config, on_ready, say)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: foreground.stop())
    code = foreground.run()
    while foreground.restarting:
        code = foreground.run()
    return code if code >= 0 else 128 - code


class Foreground:
    """A server on this terminal; `stop` and `restart` may be called from a signal handler or another thread.

    Args:
        config, on_ready, say: as `run_foreground` has them.

    Attributes:
        restarting: whether it is to be run again.
    """

    def __init__(self, config: ServerConfig, on_ready: Callable[[], None], say: Callable[[str], None]) -> None:
        self._config = config
        self._on_ready = on_ready
        self._say = say
        self._process: ServerProcess | None = None
        self._stopping = False
        self.restarting = False

    def run(self) -> int:
        """Starts the server and returns its exit code."""
        self.restarting = False
        arguments, environment = command(self._config, find_installation())
        process = self._process = ServerProcess(arguments, environment, self._config.memory_prefix)
        watch = self._watch()
        if self._stopping:  # asked to between two runs
            self._end()
        try:
            if self._becomes_ready(process):
                self._on_ready()
                watch.start()
            return process.wait()
        finally:
            watch.stop()
            process.clean_up()

    def stop(self) -> None:
        """Asks the server to end, after the requests in flight."""
        self._stopping = True
        self.restarting = False
        self._end()

    def restart(self) -> None:
        """Ends the server, to be run again; does nothing after `stop`."""
        if not self._stopping:
            self.restarting = True
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate(kill_after_s=self._config.stop_timeout_s)

    def _watch(self) -> Watch:
        config = self._config
        return Watch(
            f"{config.host}:{config.grpc_port}",
            stream_models(config.model_repository),
            self.restart,
            self._say,
            control_key=config.control_key,
        )

    def _becomes_ready(self, process: ServerProcess) -> bool:
        """Waits until the server is ready, its metrics too, and returns True; False where it ends before."""
        while not is_ready(f"{self._config.host}:{self._config.http_port}"):
            if process.ended(within_s=_LOOK_S):
                return False
        wait_for_metrics(self._config)
        return True
