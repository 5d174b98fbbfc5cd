"""What the server of a test answers (tests.support.fake_triton)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np

from tests.support.fake_triton import Call, Picture, Step

NOWHERE = "127.0.0.1:1"  # where no server can be


def of_seed(call: Call) -> Iterator[Step | Picture]:
    """A picture of one level, the seed."""
    yield Step(1, 1)
    yield Picture({"seed": call.fields["seed"], "fps": 8}, np.full((1, 4, 6, 3), call.fields["seed"], np.uint8))


class Endless:
    """Steps without end; knows how many requests are being made."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, call: Call) -> Iterator[Step]:
        self.begun.release()
        try:
            for step in range(1, 100_000):
                yield Step(step, 100_000)
                time.sleep(0.02)
        finally:
            self.ended.release()
