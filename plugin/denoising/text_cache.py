"""Keeps the text embeddings of the latest prompts, so that a prompt with another seed is not encoded again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch

from plugin.families.base import autocast_state


class TextCache:
    """What a pipeline's `encode_prompt` returned for its latest arguments, within a budget; used by any thread.

    Args:
        budget_bytes: of all tensors kept; what was used longest ago goes first. 0 keeps nothing.

    Attributes:
        hits: calls that were answered from here.
        misses: calls that were not, though they could have been.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._nbytes = 0
        self.hits = 0
        self.misses = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors kept."""
        return self._nbytes

    def wrap(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which returns what it has returned before for equal arguments.

        Each caller has tensors of its own, which its callbacks may edit. Calls that are given embeddings, or anything
        else that cannot be compared, go through. What was computed under another autocast is not the same.
        """

        def encode_or_reuse(*args: Any, **kwargs: Any) -> Any:
            try:
                key = encode.__qualname__, _frozen((args, kwargs)), _autocast_states()
            except _NotComparable:
                return encode(*args, **kwargs)
            with self._lock:
                known = key in self._kept
                self.hits += known
                self.misses += not known
                if known:
                    self._kept.move_to_end(key)
                    return _copies(self._kept[key])
            result = encode(*args, **kwargs)
            self._keep(key, _copies(result))
            return result

        return encode_or_reuse

    def _keep(self, key: Hashable, result: Any) -> None:
        with self._lock:
            if key in self._kept or _bytes_of(result) > self._budget_bytes:
                return
            self._kept[key] = result
            self._nbytes += _bytes_of(result)
            while self._nbytes > self._budget_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._nbytes -= _bytes_of(oldest)


class _NotComparable(Exception):
    pass


def _frozen(value: Any) -> Hashable:
    """A value that is equal where the arguments are: of text, numbers, devices, dtypes and collections of them."""
    if isinstance(value, Mapping):
        return "mapping", tuple((name, _frozen(each)) for name, each in sorted(value.items()))
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(_frozen, value))
    if value is None or isinstance(value, str | bool | int | float | torch.device | torch.dtype):
        return type(value).__name__, value
    raise _NotComparable


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _bytes_of(value: Any) -> int:
    """Of the memory behind all tensors, which may be parts of larger ones or share it."""
    storages = [tensor.untyped_storage() for tensor in _tensors(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _copies(value: Any) -> Any:
    """The same in tensors of their own."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        return type(value)(map(_copies, value))
    return value


def _autocast_states() -> Hashable:
    return tuple(autocast_state(kind) for kind in ("cpu", "cuda"))
