"""What a running request reports and asks. No library of models is needed for it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from taylorseer import StepKind

Pixels = npt.NDArray[np.uint8]


class RunEvents(Protocol):
    """What a running request reports and asks; a class that inherits these methods does nothing in them."""

    def check(self, step: int, num_steps: int) -> None:
        """Called at each step, while the request is queued at the engine, and before decoding; what it raises ends the
        run, for example `plugin.errors.Cancelled`."""
        return None

    def progress(self, step: int, num_steps: int, preview: Pixels | None) -> None:
        """Called when `step` of `num_steps` steps are done, with a preview (height, width, 3) where one is due."""
        return None

    def step_done(self, kind: StepKind, seconds: float) -> None:
        """Called after each step with what it was and how long it took, the scheduler's part included."""
        return None

    def engine_called(self, batch_size: int) -> None:
        """Called at the end for each engine call with the number of requests that shared it; only the first of
        those reports the call."""
        return None

    def cache_changed(self, delta_bytes: int) -> None:
        """Called when the request's cache grows, and with what it gives back at its end."""
        return None


class NoEvents(RunEvents):
    """Ignores everything."""
