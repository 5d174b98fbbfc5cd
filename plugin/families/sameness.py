"""Whether what something was computed from is still the same, so that the result can be used again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class _TensorState:
    """What of a tensor must be the same for its content to be the same; holding it keeps its memory from others."""

    tensor: torch.Tensor
    version: int

    def is_of(self, other: torch.Tensor) -> bool:
        mine = self.tensor
        if other.is_inference() or self.version != other._version:
            return False
        return mine is other or (
            mine.data_ptr() == other.data_ptr()
            and (mine.shape, mine.stride(), mine.dtype) == (other.shape, other.stride(), other.dtype)
        )


class _Unknown:
    """The state of a tensor of inference mode: nobody counts what is written into it."""


def state_of(value: Any) -> Any:
    """A value that `is_same` compares with another later."""
    if isinstance(value, torch.Tensor):
        return _Unknown() if value.is_inference() else _TensorState(value, value._version)
    if isinstance(value, list | tuple):
        return [state_of(each) for each in value]
    if isinstance(value, dict):
        return {name: state_of(each) for name, each in value.items()}
    return value


def is_same(state: Any, value: Any) -> bool:
    """Whether a value is what it was when `state_of` saw it: the same memory that nothing has been written into since,
    or an equal value of the same type."""
    if isinstance(value, torch.Tensor):
        return isinstance(state, _TensorState) and state.is_of(value)
    if isinstance(value, list | tuple):
        return isinstance(state, list) and len(state) == len(value) and all(map(is_same, state, value))
    if isinstance(value, dict):
        return (
            isinstance(state, dict) and state.keys() == value.keys() and all(is_same(state[n], value[n]) for n in value)
        )
    return type(state) is type(value) and bool(state == value)
