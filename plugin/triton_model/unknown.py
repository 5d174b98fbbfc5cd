"""What a request brought that nobody reads: `/generate` hands unknown fields on as parameters, and says nothing."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from plugin.errors import shortened
from plugin.tensors import INPUTS, UNKNOWN_PARAMETER

_MOST = 8  # names that are reported, each of at most _NAME_BYTES
_NAME_BYTES = 64
# Triton's own (protocol extensions of schedule policy, sequences, binary tensors, parameters).
_OF_TRITON = {
    *("priority", "timeout", "sequence_id", "sequence_start", "sequence_end"),
    *("binary_data_output", "binary_data_size", "headers", "id"),
}
_PREFIXES = ("triton_", "taylorseer_", "traceparent", "tracestate")


def unknown_names(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of a request that are neither this project's nor Triton's; of a plain call, those it handed on."""
    own = [name for name in parameters if name not in _OF_TRITON and not name.startswith(_PREFIXES)]
    return tuple(shortened(name, _NAME_BYTES) for name in [*own, *_handed_on(parameters)][:_MOST])


def warnings_of(names: Iterable[str]) -> list[str]:
    """A sentence for each."""
    return [f"{name!r} is no input of this model and was ignored{_hint(name)}" for name in names]


def _handed_on(parameters: Mapping[str, Any]) -> list[str]:
    try:
        names = json.loads(parameters[UNKNOWN_PARAMETER])
    except (KeyError, TypeError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _hint(name: str) -> str:
    """The input that was probably meant: the most similar one, or one that has the name as a part of its own."""
    similar = difflib.get_close_matches(name, INPUTS, 1, 0.75) or [each for each in INPUTS if name in each.split("_")]
    return f": did you mean {similar[0]}?" if similar else ""
