"""How a long build reports its progress, and how its caller ends it."""

from __future__ import annotations

from typing import Protocol


class BuildProgress(Protocol):
    """Follows a build. A class that inherits from it overrides what it needs; these methods do nothing."""

    def stage(self, name: str) -> None:
        """Called when a stage begins, for example the export."""
        return None

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """Called when a phase of the compiler or of the calibration begins.

        Args:
            name: of the phase.
            parent: the phase that contains it, or None.
            steps: how many steps it has.
        """
        return None

    def step_done(self, name: str, step: int) -> bool:
        """Called after each step of a phase; the build ends when it returns False."""
        return True

    def phase_ended(self, name: str) -> None:
        """Called when a phase ends."""
        return None


class NoProgress(BuildProgress):
    """Ignores the progress of a build."""
