"""The guard as a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import IO

from plugin.ops.guard import GuardConfig
from plugin.paths import python_path

_STOP_S = 5.0


class GuardProcess:
    """A running guard.

    Args:
        config: what it opens.
        output: a file for what it prints; None for this process's own output.
    """

    def __init__(self, config: GuardConfig, output: IO[bytes] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "plugin.ops.guard"],
            env={**os.environ, "PYTHONPATH": python_path()},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,  # a Ctrl-C on the terminal must not end it before Triton
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # one that could not start says so itself
            pipe.write(config.to_json().encode())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ends it, by force where it takes too long."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
