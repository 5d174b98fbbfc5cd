"""What the names that clients send stand for: a model, and a size in place of those that it cannot make."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FORM = re.compile(r"(?P<model>[^:]+)(:(?P<width>[0-9]{1,5})x(?P<height>[0-9]{1,5}))?")
_SIDES = ("width", "height")


@dataclass(frozen=True)
class Target:
    """A model, and the size that replaces one that it refuses.

    Attributes:
        model: its name in Triton.
        size: width and height in pixels; None to hand the model's refusal on.
    """

    model: str
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, name: str, text: str) -> Target:
        """The target that a setting names: MODEL, or MODEL:WIDTHxHEIGHT.

        Args:
            name: of the setting, for the message.
            text: the setting.

        Raises:
            ValueError: it is no such text.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{name} is {text}, must be MODEL or MODEL:WIDTHxHEIGHT, as emoji:64x64")
        size = (int(found["width"]), int(found["height"])) if found["width"] else None
        return cls(found["model"], size)

    def replaced(self, fields: Mapping[str, Any], refusal: Exception) -> dict[str, Any] | None:
        """The fields with this target's size in place of the client's, where the refusal is about that; else None."""
        about = str(refusal).partition(" ")[0].rstrip(",")
        if self.size is None or about not in _SIDES or all(fields.get(side) is None for side in _SIDES):
            return None
        return {**fields, **dict(zip(_SIDES, self.size, strict=True))}
