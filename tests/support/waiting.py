"""Waiting for what another thread or process does, by asking again and again."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool], what: str = "", timeout_s: float = 60.0, every_s: float = 0.02) -> None:
    """Returns once the condition holds; fails with `what` was waited for after the time-out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s{what and ': '}{what}"
        time.sleep(every_s)
