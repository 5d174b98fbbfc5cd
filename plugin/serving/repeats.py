"""Parts of a module that are called again and again with arguments of the same shapes: blocks, the decoder of tiles.

Where only memory counts, the first of such calls tells what the others hold.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

_Memory = weakref.ref[torch.UntypedStorage]


class Counter(Protocol):
    """What counts the memory of a run; see `plugin.serving.dry_run.HeldBytes`."""

    now: int
    peak: int

    def reach(self, nbytes: int) -> None:
        """Takes note that so many bytes have been held at once."""
        ...


@contextmanager
def skip_repeats(module: nn.Module, counter: Counter) -> Iterator[None]:
    """Inside, members of lists of modules, and a module's decoder, run once for each kind of call.

    Args:
        module: on the meta device.
        counter: follows the memory of what is run inside.
    """
    known: dict[object, _Effect] = {}
    places = [
        (parent, name)
        for parent in module.modules()
        for name, part in parent.named_children()
        if _is_called_again(parent is module, parent, name, part)
    ]
    parts = {(parent, name): parent._modules[name] for parent, name in places}
    for (parent, name), part in parts.items():
        assert part is not None
        parent._modules[name] = _Repeated(part, known, counter)
    try:
        yield
    finally:
        for (parent, name), part in parts.items():
            parent._modules[name] = part


def _is_called_again(of_module: bool, parent: nn.Module, name: str, part: nn.Module) -> bool:
    if isinstance(part, nn.ModuleList | nn.ModuleDict):
        return False
    return isinstance(parent, nn.ModuleList) or (of_module and name == "decoder")


@dataclass(frozen=True)
class _Tensor:
    """A tensor that a call has made or handed through.

    Attributes:
        memory: the index of the argument whose memory it has; of a memory that is new, its number among these.
        is_new: whether it is new.
        nbytes: of that memory.
        dtype, shape, stride, offset: of the tensor in it.
    """

    memory: int
    is_new: bool
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Effect:
    """What a call did: the memory beyond what was there before, its result, and what its lists hold after it."""

    beyond: int
    leaves: tuple[Any, ...]
    spec: TreeSpec


class _Repeated(nn.Module):
    """In place of a part: a call of a kind that is known is not run, its memory is counted all the same."""

    def __init__(self, part: nn.Module, known: dict[object, _Effect], counter: Counter) -> None:
        super().__init__()
        self.part = part  # registered: some models count what is in them
        kind = type(part), tuple((name, tuple(each.shape)) for name, each in part.named_parameters())
        self.__dict__.update(_known=known, _counter=counter, _kind=kind)

    def __getattr__(self, name: str) -> Any:
        part = self.__dict__["_modules"]["part"]
        return part if name == "part" else getattr(part, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        lists = [each for each in (*args, *kwargs.values()) if isinstance(each, list)]
        given, spec = tree_flatten((args, kwargs))
        key = self._kind, str(spec), tuple(map(_looks, given))
        effect = self._known.get(key)
        if effect is not None:
            return self._replay(effect, given, lists)
        memories = {_memory(each): index for index, each in enumerate(given) if isinstance(each, torch.Tensor)}
        del given  # what a list holds may be replaced, and is then gone
        before = self._counter.now
        peak, self._counter.peak = self._counter.peak, before
        result = self.part(*args, **kwargs)
        beyond = self._counter.peak - before
        self._counter.reach(peak)
        self._known[key] = _effect(beyond, memories, (result, lists))
        return result

    def _replay(self, effect: _Effect, given: Sequence[Any], lists: Sequence[list[Any]]) -> Any:
        self._counter.reach(self._counter.now + effect.beyond)
        peak = self._counter.peak
        result, after = tree_unflatten(_made_again(effect.leaves, given), effect.spec)
        for each, content in zip(lists, after, strict=True):
            each[:] = content
        self._counter.peak = peak  # what is replaced was gone by then
        return result


def _looks(leaf: Any) -> object:
    return (leaf.dtype, leaf.shape, leaf.stride()) if isinstance(leaf, torch.Tensor) else repr(leaf)


def _effect(beyond: int, memories: dict[_Memory, int], after: Any) -> _Effect:
    """What a call did, whose arguments had these memories."""
    leaves, spec = tree_flatten(after)
    new: dict[_Memory, int] = {}

    def described(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        memory = _memory(leaf)
        argument = memories.get(memory)
        number = new.setdefault(memory, len(new)) if argument is None else argument
        nbytes, offset = leaf.untyped_storage().nbytes(), int(leaf.storage_offset())
        return _Tensor(number, argument is None, nbytes, leaf.dtype, leaf.shape, leaf.stride(), offset)

    return _Effect(beyond, tuple(map(described, leaves)), spec)


def _memory(tensor: torch.Tensor) -> _Memory:
    """Stands for a memory, and for none that takes its place once it is gone."""
    return weakref.ref(tensor.untyped_storage())


def _made_again(leaves: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    new: dict[int, torch.Tensor] = {}

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, _Tensor):
            return leaf
        if leaf.is_new and leaf.memory not in new:
            new[leaf.memory] = torch.empty(leaf.nbytes, dtype=torch.uint8, device="meta")
        base = new[leaf.memory].view(leaf.dtype) if leaf.is_new else given[leaf.memory]
        return base.as_strided(leaf.shape, leaf.stride, leaf.offset)

    return [made(leaf) for leaf in leaves]
