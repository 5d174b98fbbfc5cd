"""The progress of a batch on ComfyUI's bar."""

from __future__ import annotations

from collections.abc import Sequence

from triton_taylorseer_client import Progress

from .host import ProgressBar
from .pixels import Pixels, preview_sheet


class Shown:
    """The steps of all pictures of a batch, added up, and their previews side by side.

    Args:
        steps: those that are expected of each picture; a strength below 1 makes them fewer.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self._totals = [*steps]
        self._done = [0] * len(steps)
        self._previews: list[Pixels | None] = [None] * len(steps)
        self._is_new = False
        self._bar = ProgressBar(sum(steps))

    def take(self, place: int, progress: Progress) -> None:
        """Notes what is told of one picture."""
        self._done[place], self._totals[place] = progress.step, progress.num_steps
        if progress.preview is not None:
            self._previews[place] = progress.preview
            self._is_new = True

    def show(self) -> None:
        """Shows all of it; the previews only if one of them is new."""
        preview = preview_sheet(self._previews) if self._is_new else None
        self._is_new = False
        self._bar.show(sum(self._done), sum(self._totals), preview)
