"""A tritonserver and its guard, from start to end."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from plugin.ops.door import Door
from plugin.ops.guard import http_socket
from plugin.ops.guard.process import GuardProcess
from plugin.ops.installation import ServerError, find_installation
from plugin.ops.process import ServerProcess
from plugin.ops.server_config import ServerConfig, command

_LONGEST_SOCKET = 107  # bytes of a path, which is Linux's limit
_METRICS_S = 2.0  # Triton opens its metrics last


class Running:
    """A tritonserver and the guard before it.

    Args:
        config: how to start them; checked.
        output: a file for what they print; None for this process's own output.

    Attributes:
        process: tritonserver.
        door: its own HTTP, which nobody else reaches.

    Raises:
        ServerError: no tritonserver, or no folder for its sockets.
    """

    def __init__(self, config: ServerConfig, output: IO[bytes] | None = None) -> None:
        installation = find_installation()
        self._config = config
        self._output = output
        self._folder = _private_folder()
        try:
            arguments, environment = command(config, installation, self._folder)
            self.door = Door(http_socket(self._folder))
            self.process = ServerProcess(arguments, environment, config.memory_prefix, output)
            self._guard = self._start_guard()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    @property
    def guard_pid(self) -> int:
        """The guard's process id."""
        return self._guard.pid

    def guard_ended(self) -> int | None:
        """The guard's exit code; None while it runs."""
        return self._guard.poll()

    def replace_guard(self) -> None:
        """Starts another guard; requests in flight are lost with the one that ended."""
        self._guard.stop()
        self._guard = self._start_guard()

    def is_ready(self) -> bool:
        """Whether all models are loaded, and every port that is opened answers."""
        return self.door.is_ready() and all(self._listens(port) for port in self._config.open_ports.values())

    def wait_for_metrics(self) -> None:
        """Waits until Triton's metrics are there, which it starts last; returns without an error where they are not."""
        ends = time.monotonic() + _METRICS_S
        while not (self._folder / "metrics").exists() and time.monotonic() < ends:
            time.sleep(0.02)

    def clean_up(self) -> None:
        """Ends the guard, and removes what the server has left behind, once it has ended."""
        self._guard.stop()
        self.process.clean_up()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_guard(self) -> GuardProcess:
        return GuardProcess(self._config.guard(self._folder), self._output)

    def _listens(self, port: int) -> bool:
        with suppress(OSError), socket.create_connection((self._config.reachable_host, port), timeout=1):
            return True
        return False


def _private_folder() -> Path:
    """A new folder that only this user can enter, with a path short enough for a socket."""
    for parent in (tempfile.gettempdir(), "/tmp", "/dev/shm"):
        with suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix="taylorseer-", dir=parent))  # mode 0700
            if len(str(folder / "metrics").encode()) <= _LONGEST_SOCKET:
                return folder
            folder.rmdir()
    raise ServerError(
        f"no folder for Triton's sockets can be made in {tempfile.gettempdir()}: name a writable one in TMPDIR"
    )
