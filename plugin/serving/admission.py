"""Decides which requests run and which wait, within a byte budget and a number of slots."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from plugin.errors import Outcome, RequestError, Unavailable

MAX_CARRIED_BYTES = 512 << 20  # of the files of all requests in the queue


class QueueFull(Unavailable):
    """No more requests may wait; the message says how many there are and when to try again."""


class TooLarge(RequestError, ValueError):
    """A request that could never run; the message has the numbers."""

    outcome = Outcome.INVALID


class Admitted(Protocol):
    """What admission knows of a request.

    Attributes:
        nbytes: what it will hold while it runs.
        carried_bytes: what it holds while it is queued: the files that came with it.
        due: queue key: `time.monotonic()` at arrival less the priority; the smallest goes first.
        began: `time.monotonic()` when it was admitted, which admission sets; None while it is queued.
    """

    @property
    def nbytes(self) -> int: ...

    @property
    def carried_bytes(self) -> int: ...

    @property
    def due(self) -> float: ...

    began: float | None

    def start(self) -> None:
        """Called once it may begin, in the thread whose call made room; must return at once."""
        ...


class Admission:
    """Admits requests to one model instance, oldest first; used by any thread.

    Each request's bytes are known before it begins and are set aside until it ends, so what is held never exceeds the
    budget. No request overtakes another: a large one waits until there is room, and those behind it wait for it, so
    that small ones do not starve it.

    Args:
        slots: requests that run at once, at least 1.
        max_waiting: requests that may wait beyond those, at least 0.
        budget_bytes: for all requests that run.
    """

    def __init__(self, slots: int, max_waiting: int, budget_bytes: int) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._active: set[Admitted] = set()
        self._queue: list[Admitted] = []
        self._service_s = 0.0  # of a request from start to end, a moving average

    @property
    def in_flight(self) -> int:
        """Requests that run."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def held_bytes(self) -> int:
        """Bytes set aside for the requests that run."""
        with self._lock:
            return self._held()

    def enter(self, request: Admitted) -> None:
        """Starts a request, or queues it.

        Raises:
            TooLarge: it needs more than the whole budget.
            QueueFull: the queue is full, or the files in it take too much memory.
        """
        if request.nbytes > self.budget_bytes:
            raise TooLarge(
                f"height, width, num_frames, cache_order and input_image make a request of {_mib(request.nbytes)}, "
                f"must be at most {_mib(self.budget_bytes)}, the memory_budget_mib of this model"
            )
        with self._lock:
            may_start = self._fits(request) and not self._queue
            if len(self._queue) >= self.max_waiting and not may_start:
                raise QueueFull(
                    f"{len(self._active)} requests are in flight and {len(self._queue)} wait, which is all this model "
                    f"takes: try again in {self._retry_s():.1f} s"
                )
            carried = sum(each.carried_bytes for each in self._queue) + request.carried_bytes
            if carried > MAX_CARRIED_BYTES and request.carried_bytes and not may_start:
                raise QueueFull(
                    f"the pictures of {len(self._queue)} requests that wait take all the memory there is for them: try "
                    f"again in {self._retry_s():.1f} s"
                )
            self._queue.append(request)
            self._queue.sort(key=lambda each: each.due)
            ready = self._admit()
        _start(ready)

    def leave(self, request: Admitted) -> None:
        """Gives back what a request held, and starts those that fit now."""
        with self._lock:
            self._active.remove(request)
            assert request.began is not None
            seconds = time.monotonic() - request.began
            self._service_s = seconds if not self._service_s else 0.8 * self._service_s + 0.2 * seconds
            ready = self._admit()
        _start(ready)

    def withdraw(self, request: Admitted) -> bool:
        """Takes a request out of the queue; False if it has begun."""
        with self._lock:
            if request not in self._queue:
                return False
            self._queue.remove(request)
            ready = self._admit()
        _start(ready)
        return True

    def position_of(self, request: Admitted) -> int:
        """The place of a request in the queue, from 1; 0 if it is not queued."""
        with self._lock:
            return self._queue.index(request) + 1 if request in self._queue else 0

    def expected_wait_s(self) -> float:
        """How long a request that comes now will wait, from how long others took; 0 before any has ended."""
        with self._lock:
            ahead = len(self._queue) + max(0, len(self._active) - self.slots + 1)
            return ahead * self._service_s / self.slots

    def _held(self) -> int:
        return sum(each.nbytes for each in self._active)

    def _fits(self, request: Admitted) -> bool:
        return len(self._active) < self.slots and self._held() + request.nbytes <= self.budget_bytes

    def _admit(self) -> list[Admitted]:
        ready = []
        while self._queue and self._fits(self._queue[0]):
            request = self._queue.pop(0)
            request.began = time.monotonic()
            self._active.add(request)
            ready.append(request)
        return ready

    def _retry_s(self) -> float:
        """When the first place in the queue is likely to be free."""
        return max(0.1, self._service_s / self.slots)


def _start(requests: list[Admitted]) -> None:
    for request in requests:
        request.start()


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
