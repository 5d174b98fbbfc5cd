"""How long the clients wait: for another try, and for a stream that has fallen silent."""

from __future__ import annotations

import math
import random
import time
from numbers import Real

from triton_taylorseer_client.messages import Progress, Unavailable

IDLE_TIMEOUT_S = 30.0
_FIRST_PAUSE_S = 0.5
_TRANSFER_PATIENCE = 10  # a request or a video may have many megabytes, and nothing else arrives while they travel


def seconds(name: str, value: float | None) -> float | None:
    """A number of seconds, None for no limit, which an infinite number is as well.

    Raises:
        ValueError: it is not a number of at least 0; `name` says which.
    """
    if value is None or value == math.inf:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not value >= 0:
        raise ValueError(f"{name} is {value!r}, must be a number of seconds of at least 0, or None")
    return float(value)


class Tries:
    """How often and when a refused request is sent again.

    The pause doubles each time and is at least as long as the server asks for. Up to half of it is added at random, so
    that clients that were refused together do not all return at the same time.

    Args:
        retries: how often it is sent again.
        timeout_s: seconds for all of it, or None for no limit.

    Raises:
        ValueError: one of them is no such number.
    """

    def __init__(self, retries: int, timeout_s: float | None) -> None:
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries is {retries!r}, must be an integer of at least 0")
        self._left = retries
        self._pause_s = _FIRST_PAUSE_S
        limit_s = seconds("timeout_s", timeout_s)
        self._ends = None if limit_s is None else time.monotonic() + limit_s

    @property
    def left_s(self) -> float | None:
        """Seconds that remain, or None for no limit."""
        return None if self._ends is None else max(0.0, self._ends - time.monotonic())

    def pause_s(self, refusal: Unavailable) -> float:
        """Seconds to wait before the next try.

        Raises:
            Unavailable: the refusal itself, if no try or no time is left.
        """
        pause = max(self._pause_s, refusal.retry_after_s or 0.0) * random.uniform(1.0, 1.5)
        if not self._left or (self.left_s is not None and pause >= self.left_s):
            raise refusal
        self._left -= 1
        self._pause_s *= 2
        return pause


class Silence:
    """How long a stream may be silent, and which of its progress is news.

    Args:
        model: the model's name, for the error.
        idle_timeout_s: seconds, or None for no limit.

    Raises:
        ValueError: it is no number of seconds.
    """

    def __init__(self, model: str, idle_timeout_s: float | None) -> None:
        self._model = model
        self._idle_timeout_s = seconds("idle_timeout_s", idle_timeout_s)
        self._heard: Progress | None = None

    @property
    def limit_s(self) -> float | None:
        """Seconds within which the next response is due, None for no limit."""
        if self._idle_timeout_s is None:
            return None
        is_working = self._heard is not None and not self._heard.step >= self._heard.num_steps > 0
        return self._idle_timeout_s * (1 if is_working else _TRANSFER_PATIENCE)

    def is_news(self, progress: Progress) -> bool:
        """Whether it differs from what was heard before: a sign of life alone is no progress."""
        before = (self._heard.step, self._heard.queue_position) if self._heard is not None else (0, 0)
        self._heard = progress
        return (progress.step, progress.queue_position) != before or progress.preview is not None

    def broken(self) -> Unavailable:
        """The error of a stream that has been silent for too long."""
        silent = f"{self._model}_stream has not been heard from for {self.limit_s:g} s"
        return Unavailable(f"{silent}, its process may have ended: try again")
