"""Whose turn it is among several servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

_SKIPPED_S = 30.0


class Turns:
    """Servers that take turns; one that does not answer comes last for some time. Usable from any thread.

    Args:
        urls: of the servers, at least one.
        skipped_s: for how long one that does not answer comes last.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(
        self, urls: Sequence[str], skipped_s: float = _SKIPPED_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._urls = [*urls]
        self._skipped_s = skipped_s
        self._clock = clock
        self._next = 0
        self._skipped_until: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self) -> list[str]:
        """All servers in the order in which to try them; the next call begins with the next one that answers."""
        with self._lock:
            now = self._clock()
            ordered = self._urls[self._next :] + self._urls[: self._next]
            absent = [url for url in ordered if self._skipped_until.get(url, now) > now]
            present = [url for url in ordered if url not in absent]
            first = (present or absent)[0]
            self._next = (self._urls.index(first) + 1) % len(self._urls)
            return present + absent

    def skip(self, url: str) -> None:
        """It does not answer."""
        with self._lock:
            self._skipped_until[url] = self._clock() + self._skipped_s

    def answers(self, url: str) -> None:
        """It answers, perhaps again."""
        with self._lock:
            self._skipped_until.pop(url, None)
