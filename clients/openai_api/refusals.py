"""When those who were refused shall come back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

LONGEST_S = 120.0  # OpenAI's clients do not come back at all if they are told more


class Places:
    """The free places of one model's queue that were promised to those it has refused.

    The model tells each of them when its next place is free. If all came back then, one would find room. So each is
    told a time after those of the others: a place becomes free about once in the time that the model tells.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._promised = 0.0  # when the latest promised place is free, by the clock

    def promise(self, each_s: float, places: int = 1) -> float:
        """Seconds after which there is room, at most `LONGEST_S`.

        Args:
            each_s: seconds in which one place becomes free.
            places: how many the request needs.
        """
        now = self._clock()
        self._promised = max(self._promised, now) + each_s * places
        if self._promised - now > LONGEST_S:
            self._promised = now + LONGEST_S
            return random.uniform(LONGEST_S / 2, LONGEST_S)  # not all at the same time
        return self._promised - now
