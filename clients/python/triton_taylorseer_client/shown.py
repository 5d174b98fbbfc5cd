"""How a message shows a value that it refuses."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

_LONGEST = 120  # characters
_SHOWN = reprlib.Repr()  # does not write out the whole of a large value first
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60


def shown(value: Any) -> str:
    """The value in at most 120 characters, as Python writes it."""
    if isinstance(value, np.generic):
        value = value.item()  # numpy's own text says the type too
    try:
        text = _SHOWN.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "too long to show"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
