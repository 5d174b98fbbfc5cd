"""Who is worked on, within a budget of bytes and a number of slots, and who waits in line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from plugin.errors import Outcome, RequestError, Unavailable


class QueueFull(Unavailable):
    """No more requests may wait; the message says how many there are and when to try again."""


class TooLarge(RequestError, ValueError):
    """A request that could never be worked on; the message has the numbers."""

    outcome = Outcome.INVALID


@dataclass(eq=False)
class Entry:
    """One request at the door.

    Attributes:
        nbytes: what it will hold while it is worked on.
        due: its place in line, in seconds; the smallest comes first.
        start: called once it may begin, in the thread whose call made room.
    """

    nbytes: int
    due: float
    start: Callable[[], None]
    began: float | None = field(default=None, init=False)


class Admission:
    """Admits requests to one model instance, oldest first; used by any thread.

    Each request's bytes are known before it begins and are set aside until it ends, so what is held never exceeds the
    budget. Nobody overtakes in line: a large request waits until there is room, and those behind it wait for it, so
    that it is not starved by small ones.

    Args:
        slots: requests worked on at once, at least 1.
        max_waiting: requests that may wait beyond those, at least 0.
        budget_bytes: for all requests that are worked on.
    """

    def __init__(self, slots: int, max_waiting: int, budget_bytes: int) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._active: set[Entry] = set()
        self._line: list[Entry] = []
        self._service_s = 0.0  # of a request from start to end, a moving average

    @property
    def in_flight(self) -> int:
        """Requests being worked on."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    @property
    def held_bytes(self) -> int:
        """Bytes set aside for the requests that are worked on."""
        with self._lock:
            return self._held()

    def enter(self, entry: Entry) -> None:
        """Starts a request, or puts it in line.

        Raises:
            TooLarge: it needs more than the whole budget.
            QueueFull: the line is full.
        """
        if entry.nbytes > self.budget_bytes:
            raise TooLarge(
                f"height, width, num_frames and cache_order make a request of {_mib(entry.nbytes)}, must be at most "
                f"{_mib(self.budget_bytes)}, the memory_budget_mib of this model"
            )
        with self._lock:
            if len(self._line) >= self.max_waiting and not (self._fits(entry) and not self._line):
                raise QueueFull(
                    f"{len(self._active)} requests are in flight and {len(self._line)} wait, which is all this model "
                    f"takes: try again in {self._retry_s():.1f} s"
                )
            self._line.append(entry)
            self._line.sort(key=lambda each: each.due)
            ready = self._admit()
        _start(ready)

    def leave(self, entry: Entry) -> None:
        """Gives back what a request held, and starts who fits now."""
        with self._lock:
            self._active.remove(entry)
            assert entry.began is not None
            seconds = time.monotonic() - entry.began
            self._service_s = seconds if not self._service_s else 0.8 * self._service_s + 0.2 * seconds
            ready = self._admit()
        _start(ready)

    def withdraw(self, entry: Entry) -> bool:
        """Takes a request out of the line; False if it has begun."""
        with self._lock:
            if entry not in self._line:
                return False
            self._line.remove(entry)
            ready = self._admit()
        _start(ready)
        return True

    def expected_wait_s(self) -> float:
        """How long a request that comes now will wait, from how long others took; 0 before any has ended."""
        with self._lock:
            ahead = len(self._line) + max(0, len(self._active) - self.slots + 1)
            return ahead * self._service_s / self.slots

    def _held(self) -> int:
        return sum(each.nbytes for each in self._active)

    def _fits(self, entry: Entry) -> bool:
        return len(self._active) < self.slots and self._held() + entry.nbytes <= self.budget_bytes

    def _admit(self) -> list[Entry]:
        ready = []
        while self._line and self._fits(self._line[0]):
            entry = self._line.pop(0)
            entry.began = time.monotonic()
            self._active.add(entry)
            ready.append(entry)
        return ready

    def _retry_s(self) -> float:
        """When the first place in line is likely to be free."""
        return max(0.1, self._service_s / self.slots)


def _start(entries: list[Entry]) -> None:
    for entry in entries:
        entry.start()


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
