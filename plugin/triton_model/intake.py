"""Takes requests with pictures in: in a thread of its own, because even the head of a hostile file takes a moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from plugin.errors import Unavailable
from plugin.serving.admission import MAX_CARRIED_BYTES


class Intake:
    """Accepts requests one after the other, in the order in which they came.

    Args:
        name: of the model.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-intake")
        self._lock = threading.Lock()
        self._nbytes = 0

    def submit(self, nbytes: int, accept: Callable[[], None]) -> None:
        """Has a request accepted.

        Args:
            nbytes: of the files that it brings.
            accept: accepts it, and answers it where that fails; it must not raise.

        Raises:
            Unavailable: the files of those before it take all the memory there is for them.
        """
        with self._lock:
            if self._nbytes and self._nbytes + nbytes > MAX_CARRIED_BYTES:
                raise Unavailable("the pictures of other requests have not been read yet: try again in 1 s")
            self._nbytes += nbytes
        self._thread.submit(self._run, nbytes, accept)

    def close(self) -> None:
        """Accepts what has come, and ends the thread."""
        self._thread.shutdown()

    def _run(self, nbytes: int, accept: Callable[[], None]) -> None:
        try:
            accept()
        finally:
            with self._lock:
                self._nbytes -= nbytes
