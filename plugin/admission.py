"""How many requests are worked on at once, and how many may wait."""

from __future__ import annotations

import threading


class LineFull(Exception):
    """All slots are taken and no more requests may wait; the message says how many there are."""


class Admission:
    """Counts the requests in flight and in line of one model instance; used by any thread.

    Args:
        slots: requests worked on at once, at least 1.
        max_waiting: requests that may wait beyond those, at least 0.
    """

    def __init__(self, slots: int, max_waiting: int) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self._lock = threading.Lock()
        self._present = 0

    @property
    def in_flight(self) -> int:
        """Requests being worked on."""
        return min(self._present, self.slots)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return max(0, self._present - self.slots)

    def enter(self) -> None:
        """Takes a slot or a place in line.

        Raises:
            LineFull: neither is left.
        """
        with self._lock:
            if self._present >= self.slots + self.max_waiting:
                raise LineFull(
                    f"{self.slots} requests are in flight and {self.waiting} wait, which is all this model takes: "
                    "try again later"
                )
            self._present += 1

    def leave(self) -> None:
        """Gives the place back."""
        with self._lock:
            assert self._present > 0
            self._present -= 1
