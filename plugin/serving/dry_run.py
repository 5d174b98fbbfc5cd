"""Runs modules on torch's meta device, where tensors have shapes and no memory, and counts what they would hold."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from plugin.serving.repeats import skip_repeats

_CONVOLUTION = torch.ops.aten.convolution.default
_MASK_ALIGNMENT = 8  # numbers, of torch's memory-efficient attention (ATen's transformers/attention.cpp)


@dataclass(frozen=True)
class Machine:
    """What of a machine decides how much memory operations take beside their results.

    Attributes:
        gpu: a convolution has its input and its output once more, with the channels last, as cuDNN's for tensor cores
            has them in its workspace; and rows of a mask are copied to a multiple of 8 numbers.
        fuses_attention: attention has no matrix of scores.
    """

    gpu: bool = False
    fuses_attention: bool = True


FUSED = Machine()


def peak_of(
    module: nn.Module,
    call: Callable[[], Any],
    given: Iterable[torch.Tensor] = (),
    machine: Machine = FUSED,
    *,
    repeats: bool = True,
) -> int:
    """The most bytes that a call holds at once beyond the weights and its arguments; what it returns is among them.

    Args:
        module: on the meta device.
        call: calls it.
        given: the arguments of the call.
        machine: what it is to run on.
        repeats: whether parts of it that are called again with arguments of the same shapes are run once; not where the
            module keeps what its parts return.

    Raises:
        NotImplementedError, RuntimeError: the call depends on numbers, which tensors of the meta device do not have.
    """
    held = HeldBytes([*given, *module.parameters(), *module.buffers()], machine)
    with ExitStack() as modes:
        modes.enter_context(without_numbers(machine))
        if repeats:
            modes.enter_context(skip_repeats(module, held))
        modes.enter_context(held)
        call()
    return held.peak


@contextmanager
def without_numbers(machine: Machine = FUSED) -> Iterator[None]:
    """Inside, modules of the meta device can be called."""
    with torch.no_grad(), torch.device("meta"), WithoutNumbers(machine):
        yield


class HeldBytes(TorchDispatchMode):
    """Follows the memory of all tensors that operations make.

    Args:
        known: tensors that are there before, which do not count.
        machine: what operations take beside their results.

    Attributes:
        now: bytes of those tensors that are alive.
        peak: the most that there were at once.
    """

    def __init__(self, known: Iterable[torch.Tensor] = (), machine: Machine = FUSED) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._machine = machine
        self._sizes = {weakref.ref(each.untyped_storage()): 0 for each in known}  # by the memory, not the tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self._follow(each.untyped_storage())
        workspace = args[0].nbytes + result.nbytes if self._machine.gpu and func is _CONVOLUTION else 0
        self.reach(self.now + workspace)
        return result

    def reach(self, nbytes: int) -> None:
        """Takes note that so many bytes have been held at once."""
        self.peak = max(self.peak, nbytes)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        memory = weakref.ref(storage, self._freed)
        if memory not in self._sizes:
            self._sizes[memory] = storage.nbytes()
            self.now += storage.nbytes()

    def _freed(self, memory: weakref.ref[torch.UntypedStorage]) -> None:
        self.now -= self._sizes.pop(memory)


class WithoutNumbers(TorchFunctionMode):
    """Does on the meta device what needs a kernel or numbers elsewhere.

    Attention gives its result and, for each query, the float32 that fused kernels keep. Masks have no numbers: every
    token counts, in each of them, and none is only padding.

    Args:
        machine: what attention takes beside its result.
    """

    def __init__(self, machine: Machine = FUSED) -> None:
        super().__init__()
        self._machine = machine
        self._empty = WeakIdKeyDictionary()  # masks in which no token counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            return _attended(self._machine, *args, **kwargs)
        if func is torch.Tensor.__bool__:
            return False
        result = func(*args, **kwargs) if not _is_masked(func, args) else self._masked(*args)
        if func is torch.Tensor.__invert__ and result.dtype == torch.bool:
            self._empty[result] = True
        return result

    def _masked(self, tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The rows where a mask is true."""
        rows = tensor.flatten(0, mask.ndim - 1)
        return rows[:0] if mask in self._empty else rows.clone()


def _is_masked(func: Any, args: Any) -> bool:
    return func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool


def _attended(
    machine: Machine,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    """(B, H, Q, D). A mask of booleans is made numbers before."""
    beside = [] if attn_mask is None else [attn_mask.to(query.dtype)]
    if beside and machine.gpu and (short := -beside[0].shape[-1] % _MASK_ALIGNMENT):
        beside.append(nn.functional.pad(beside[0], (0, short)))
    if not machine.fuses_attention:
        scores = (*query.shape[:-1], key.shape[-2])
        beside += [query.new_empty(scores), query.new_empty(scores)]  # before and after the softmax
    result = query.new_empty(*query.shape[:-1], value.shape[-1])
    query.new_empty(query.shape[:-1], dtype=torch.float32)  # of each query, as fused attention keeps it
    return result
