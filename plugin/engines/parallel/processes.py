"""The further processes of an engine: started, watched, and ended with everything that is theirs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch.distributed as dist

from plugin.engines.base import EngineError
from plugin.engines.parallel.messages import CallEnd, Start
from plugin.engines.parallel.worker import ALIVE, BEAT_S, RAISED
from plugin.errors import Unavailable

SILENCE_S = 20.0  # without a sign of life: no load keeps a thread that only sleeps from one for so long
_GRACE_S = 10.0  # from an error in one process to the end of the call in the others
_END_S = 3.0  # for a process to end by itself

_log = logging.getLogger(__name__)


class ProcessesLost(EngineError, Unavailable):
    """A process of the engine has ended, hangs, or left a call half done: the model has to be loaded again."""


@dataclass(eq=False)
class Process:
    """One further process.

    Attributes:
        rank: its number, from 1.
        device: where it computes.
        popen: the process.
        control: calls, and how they ended.
        life: its signs of life.
        heard: `time.monotonic()` at the latest of them.
        calls: how many it has run.
        settled: how many of them have ended in every process.
    """

    rank: int
    device: str
    popen: subprocess.Popen[bytes]
    control: Connection
    life: Connection
    heard: float = field(default_factory=time.monotonic)
    calls: int = 0
    settled: int = 0

    def __str__(self) -> str:
        return f"process {self.rank} of the engine, on {self.device}"


@dataclass(frozen=True)
class _Raised:
    """An error that a call has ended with in one process.

    Attributes:
        at: `time.monotonic()` when it was known.
        call: the number of the call in that process.
        text: where, and which.
    """

    at: float
    call: int
    text: str


class OtherProcesses:
    """All further processes of one engine; one that is lost takes the others with it.

    Args:
        devices: of each, from rank 1 on.
        inherited: file descriptors that they need.
        silence_s: how long one may give no sign of life.

    Attributes:
        failure: why the engine has failed, once it has.
    """

    def __init__(self, devices: Sequence[str], inherited: Sequence[int], silence_s: float = SILENCE_S) -> None:
        self.failure: str | None = None
        self._devices, self._inherited, self._silence_s = devices, inherited, silence_s
        self._all: dict[int, Process] = {}
        self._lock = threading.Lock()
        self._raised: dict[int, _Raised] = {}  # the latest of each rank
        self._closing = threading.Event()
        self._started = threading.Event()
        # Of a thread of its own, which lives as long as they: Linux ends a process with the thread that has made it.
        self._keeper = threading.Thread(target=self._keep, name="engine-processes", daemon=True)

    def start(self, starts: Mapping[int, Start]) -> None:
        """Starts all; returns once they are ready to meet.

        Args:
            starts: what each is told, by rank.

        Raises:
            ProcessesLost: one has ended.
        """
        self._keeper.start()
        self._started.wait()
        for rank in self._all:
            self.tell(rank, starts[rank])
        self.wait_for_all()

    def wait_for_all(self) -> None:
        """Waits until each process has done what it does next when it starts.

        Raises:
            ProcessesLost: one has ended.
        """
        for rank in self._all:
            self.answer(rank)

    @property
    def calls(self) -> dict[int, int]:
        """How many calls each has run, by rank."""
        return {rank: process.calls for rank, process in self._all.items()}

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each, by rank."""
        return {rank: process.popen.pid for rank, process in self._all.items()}

    def tell(self, rank: int, message: object) -> None:
        """Sends a message.

        Raises:
            ProcessesLost: it is lost.
        """
        self.check()
        try:
            self._all[rank].control.send(message)
        except OSError:
            raise self.lost(rank) from None

    def outcome(self, rank: int) -> CallEnd:
        """Waits for the end of a call in a process.

        Raises:
            ProcessesLost: it is lost.
        """
        outcome: CallEnd = self.answer(rank)
        self._all[rank].calls = outcome.calls
        return outcome

    def answer(self, rank: int) -> Any:
        """Waits for the next message of a process.

        Raises:
            ProcessesLost: it is lost.
        """
        process = self._all[rank]
        try:
            while not process.control.poll(BEAT_S):
                self.check()
            return process.control.recv()
        except (EOFError, OSError):
            raise self.lost(rank) from None

    def lost(self, rank: int) -> ProcessesLost:
        """The error of a call in which a process could not be reached."""
        self._lost(self._all[rank])
        return ProcessesLost(self.failure)

    def check(self) -> None:
        """Raises ProcessesLost where the engine has failed."""
        if self.failure:
            raise ProcessesLost(self.failure)

    def raised(self, error: BaseException) -> None:
        """Says that a call has ended with an error in this process: the others have some seconds for the same."""
        self._raised[0] = _Raised(time.monotonic(), 0, f"process 0, {type(error).__name__}: {error}")

    def settled(self, ranks: Iterable[int]) -> None:
        """Says that a call has ended in every process that took part, with whatever outcome."""
        for rank in ranks:
            if rank:
                self._all[rank].settled = self._all[rank].calls
            else:
                self._raised.pop(0, None)

    def fail(self, reason: str) -> None:
        """Ends all processes: what waits for one of them then ends with an error."""
        with self._lock:
            if self.failure is not None or self._closing.is_set():
                return
            self.failure = f"the parallel engine failed: {reason}"
        _log.error(self.failure)
        for process in self._all.values():
            process.popen.kill()  # also one that is stopped
        if any(device != "cpu" for device in self._devices):  # gloo notices by itself, kernels of NCCL wait on
            with suppress(Exception):
                dist.distributed_c10d._abort_process_group()

    def close(self) -> None:
        """Ends all processes, and waits for that."""
        with self._lock:
            self._closing.set()
        if self._keeper.ident is not None:
            self._keeper.join()
        for process in self._all.values():
            process.control.close()
            process.life.close()  # at its other end a thread waits for this
        for process in self._all.values():
            try:
                process.popen.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()

    def _keep(self) -> None:
        """The thread that starts the processes and hears from them."""
        try:
            for rank, device in enumerate(self._devices, 1):
                self._all[rank] = self._spawned(rank, device)
        finally:
            self._started.set()
        while not self._closing.is_set():
            self._listen()
            if self.failure:
                self._closing.wait()

    def _listen(self) -> None:
        heard = wait([process.life for process in self._all.values()], BEAT_S / 2)
        now = time.monotonic()
        for process in self._all.values():
            try:
                while process.life in heard and process.life.poll():
                    self._hear(process, process.life.recv_bytes(), now)
            except (EOFError, OSError):
                self._lost(process)
                return
            if now - process.heard > self._silence_s:
                self.fail(f"{process}, gave no sign of life for {self._silence_s:g} s")
                return
        for rank, raised in [*self._raised.items()]:
            if rank and self._all[rank].settled >= raised.call:
                del self._raised[rank]  # its sign may have been heard after the end of the call
            elif now - raised.at > _GRACE_S:
                self.fail(f"a call ended with an error in one process and not in the others: {raised.text}")

    def _hear(self, process: Process, sign: bytes, now: float) -> None:
        process.heard = now
        if sign != ALIVE:
            call, _, text = sign.removeprefix(RAISED).decode().partition(" ")
            self._raised[process.rank] = _Raised(now, int(call), f"{process}, {text}")

    def _lost(self, process: Process) -> None:
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(_END_S)
        status = process.popen.returncode
        how = "cannot be reached" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        self.fail(f"{process}, {how}")

    def _spawned(self, rank: int, device: str) -> Process:
        control, its_control = Pipe()
        life, its_life = Pipe()
        own = (its_control.fileno(), its_life.fileno())
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        popen = subprocess.Popen(
            [_python(), "-m", "plugin.engines.parallel.worker", *map(str, own)],
            stdin=subprocess.DEVNULL,
            pass_fds=[*own, *self._inherited],
            env=environment,
        )
        its_control.close()
        its_life.close()
        return Process(rank, device, popen, control, life)


def _python() -> str:
    """The interpreter of this process, also where that is embedded, as in Triton's Python backend."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    return str(Path(sys.prefix) / "bin" / "python3")
