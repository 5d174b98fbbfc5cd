"""When refused clients are told to come back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

REFUSED_WITHIN_S = 2.0  # a refusal within this time has an HTTP status; later errors are told in another way
LONGEST_S = 120.0  # OpenAI's clients do not come back at all if they are told more
SLACK = 1.5  # requests take longer than before while many run; coming a little late costs nothing while others wait
_ENDS_ENOUGH = 4  # requests that have ended tell how long a place takes better than the model, which looks back further


class Places:
    """The free places of one model's queue that were promised to those it has refused.

    The model tells each of them when its next place is free. If all came back then, one would find room. So each is
    told a time after those of the others, as far apart as places become free: by the ends of this front's requests
    since the rush began, and before there are some, by what the model tells.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._promised = 0.0  # when the latest promised place is free, by the clock
        self._rush_began = 0.0
        self._ended = 0

    def end(self) -> None:
        """A request has ended, and so left its place."""
        self._ended += 1

    def promise(self, each_s: float, places: int = 1) -> float:
        """Seconds after which there is room, at most `LONGEST_S`.

        Args:
            each_s: seconds in which one place becomes free, as the model tells.
            places: how many the request needs.
        """
        now = self._clock()
        if now >= self._promised:  # all who were refused before have come back
            self._rush_began, self._ended = now, 0
        elif self._ended >= _ENDS_ENOUGH:
            each_s = (now - self._rush_began) / self._ended
        self._promised = max(self._promised, now) + SLACK * each_s * places
        if self._promised - now > LONGEST_S:
            self._promised = now + LONGEST_S
            return random.uniform(LONGEST_S / 2, LONGEST_S)  # not all at the same time
        return self._promised - now
