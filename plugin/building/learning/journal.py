"""The scores that a search has paid for, in a file, so that a search that was ended goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugin.building.learning.annealing import Steps


class Journal:
    """Scores by full steps, written down one by one.

    Args:
        path: of the file.
        settings: all that a score follows from but the full steps, as JSON has it; scores of other settings are not
            read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self._scores: dict[Steps, float] = {}
        self._cut_off = False
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            self._cut_off = bool(text) and not text.endswith("\n")  # the last line, where a search was ended
            for line in text.splitlines():
                self._read(line)

    def get(self, steps: Steps) -> float | None:
        """The score of these full steps; None if it is not known."""
        return self._scores.get(steps)

    def put(self, steps: Steps, score: float) -> None:
        """Keeps a score."""
        self._scores[steps] = score
        entry = json.dumps({"settings": self._settings, "full_steps": steps, "score": score})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self._cut_off else "") + entry + "\n")
        self._cut_off = False

    def remove(self) -> None:
        """Deletes the file: the search is done."""
        self._path.unlink(missing_ok=True)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            if entry["settings"] == self._settings:
                self._scores[tuple(entry["full_steps"])] = float(entry["score"])
        except (ValueError, KeyError, TypeError):  # cut off where the search was ended
            return
