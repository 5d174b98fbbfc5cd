"""A tritonserver process: started, asked to end, killed where it does not, and cleaned up after."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from plugin.paths import lock_file

_LOOK_S = 0.5  # how often a wait checks whether the process is to be killed
_SHARED_MEMORY = Path("/dev/shm")  # where Linux shows POSIX shared memory


class ServerProcess:
    """A running tritonserver. Its methods may be called from any thread and from a signal handler.

    Args:
        arguments: the command line.
        environment: all of it.
        memory_prefix: how the names of its shared memory begin.
        output: a file for what it prints; None for this process's own output.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        memory_prefix: str,
        output: IO[bytes] | None = None,
    ) -> None:
        self._memory_prefix = memory_prefix
        self._kill_at = math.inf
        # A session of its own: a Ctrl-C on the terminal reaches the server once, through us, and not its stubs.
        self._process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process id, which is also that of its process group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code that the last call of another method saw: -n where signal n killed it, None while it runs."""
        return self._process.returncode

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def terminate(self, kill_after_s: float = math.inf) -> None:
        """Asks it to end; a wait kills it that many seconds later. Of several calls the earliest time counts."""
        self._kill_at = min(self._kill_at, time.monotonic() + kill_after_s)
        self._process.terminate()

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def ended(self, within_s: float) -> bool:
        """Whether it has ended, for which it waits up to so long; kills it where the time of `terminate` is over."""
        if time.monotonic() > self._kill_at:
            self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return self._process.returncode is not None

    def wait(self) -> int:
        """Its exit code, once it has ended; kills it as `ended` does."""
        while not self.ended(within_s=_LOOK_S):
            pass
        return self._process.returncode

    def clean_up(self) -> None:
        """Removes what it has left behind once it has ended: the processes of its group, its lock files and, where it
        was killed, its shared memory, which is a megabyte or more for each process."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        locks = lock_file(self.pid, "*")
        for path in (*locks.parent.glob(locks.name), *_SHARED_MEMORY.glob(f"{self._memory_prefix}*")):
            path.unlink(missing_ok=True)
