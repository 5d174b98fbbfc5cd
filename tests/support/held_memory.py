"""How much memory of torch a run really holds: measured, not computed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Alive(TorchDispatchMode):
    """Keeps a table of the storages that are alive, by their address, and the largest sum of their sizes."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.before = {each.untyped_storage()._cdata for each in before}
        self.alive: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                address = storage._cdata
                if address not in self.before and address not in self.alive:
                    self.alive[address] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, address, None)
        self.most = max(self.most, sum(self.alive.values()))
        return result


def held_by_tensors(
    run: Callable[[], Any], modules: Iterable[nn.Module] = (), given: Iterable[torch.Tensor] = ()
) -> int:
    """The most bytes of tensors that are alive at once while a function runs, those that were there before not counted.

    Args:
        run: the function; it runs on a CPU.
        modules: whose weights were there before.
        given: other tensors that were.
    """
    gc.collect()
    weights = [each for module in modules for each in (*module.parameters(), *module.buffers())]
    with _Alive([*weights, *given]) as alive:
        run()
    return alive.most


def held_by_allocator(run: Callable[[], Any]) -> int:
    """The most bytes that torch's allocator of the CPU has given out at once while a function runs: tensors, and what
    operations take inside."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    now = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def weight_bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of the weights and buffers of loaded modules, each storage once."""
    tensors = [each for module in modules for each in (*module.parameters(), *module.buffers())]
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())
