"""Runs a tritonserver on this terminal until it ends or a signal stops it; restarts it when its watch asks for that."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable

from plugin.ops.door import Door
from plugin.ops.running import Running
from plugin.ops.server_config import ServerConfig, ServerError, check
from plugin.ops.watch import Watch
from plugin.repository import stream_models

_LOOK_S = 0.2  # how often it is checked whether the server is ready, or has ended
_GUARD_S = 5.0  # between two starts of a guard


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
        self._running: Running | None = None
        self._stopping = False
        self._guarded_at = -math.inf
        self.restarting = False

    def run(self) -> int:
        """Starts the server and returns its exit code.

        Raises:
            ServerError: it or its guard cannot be started.
        """
        self.restarting = False
        running = self._running = Running(self._config)
        watch = self._watch(running.door)
        if self._stopping:  # asked to between two runs
            self._end()
        try:
            if self._becomes_ready(running):
                self._on_ready()
                watch.start()
            while not running.process.ended(within_s=_LOOK_S):
                self._look_after_guard(running)
            return self._report_end(running.process.wait())
        finally:
            watch.stop()
            running.clean_up()

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
        if self._running is not None:
            self._running.process.terminate(kill_after_s=self._config.stop_timeout_s)

    def _watch(self, door: Door) -> Watch:
        return Watch(door, stream_models(self._config.model_repository), self.restart, self._say)

    def _becomes_ready(self, running: Running) -> bool:
        """Waits until the server is ready, its metrics too, and returns True; False where it ends before."""
        while not running.is_ready():
            if running.process.ended(within_s=_LOOK_S):
                return False
            if running.guard_ended() is not None and not self._stopping:
                running.process.kill()
                running.process.wait()
                raise ServerError("the guard before Triton has ended, as it says above")
        running.wait_for_metrics()
        return True

    def _look_after_guard(self, running: Running) -> None:
        """Starts another guard where it has ended, but no faster than `_GUARD_S`."""
        code = running.guard_ended()
        if code is not None and time.monotonic() - self._guarded_at > _GUARD_S:
            self._guarded_at = time.monotonic()
            self._say(f"the guard has ended with code {code}: another one is started")
            running.replace_guard()

    def _report_end(self, code: int) -> int:
        """Says why the server has ended where nobody asked it to."""
        if not self._stopping and not self.restarting and code:
            why = f"was killed by signal {-code}" if code < 0 else f"has ended with code {code}"
            hint = ": the machine may be out of memory" if code == -signal.SIGKILL else ""
            self._say(f"tritonserver {why}{hint}")
        return code
