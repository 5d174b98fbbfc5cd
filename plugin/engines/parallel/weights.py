"""A block stack as what another process can be given: its structure as bytes, and its weights apart from that.

On a CPU all processes map the same memory. It is a file without a name (memfd_create(2)): it has no limit but the
machine's memory, and is gone with the last process, however that ends. A GPU's process gets a copy, over NCCL.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from plugin.families.base import Family

_ALIGNMENT = 64  # bytes, a cache line


@dataclass(frozen=True)
class Shape:
    """What must be known of a tensor to make one like it.

    Attributes:
        shape: its axes.
        dtype: of its elements.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Shape:
        """Of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)


@dataclass(frozen=True)
class TakenApart:
    """A block stack without its weights.

    Attributes:
        structure: the pickled module, with numbers in place of tensors.
        shapes: of the tensors, in the order of their numbers.
    """

    structure: bytes
    shapes: tuple[Shape, ...]


def take_apart(family: Family) -> tuple[TakenApart, list[torch.Tensor]]:
    """The block stack of a family as structure and weights.

    Returns:
        The structure, and the tensors: parameters and buffers, those of the stack itself.
    """
    tensors: list[torch.Tensor] = []
    numbers: dict[int, int] = {}
    bare = family.bare()

    class Pickler(pickle.Pickler):
        def persistent_id(self, each: Any) -> Any:
            if not isinstance(each, torch.Tensor):
                return None
            if id(each) not in numbers:
                numbers[id(each)] = len(tensors)
                tensors.append(each)
            return numbers[id(each)], isinstance(each, nn.Parameter)

        def reducer_override(self, each: Any) -> Any:
            return (_itself, (bare,)) if each is family else NotImplemented

    structure = io.BytesIO()
    Pickler(structure).dump(family.block_stack().eval())
    return TakenApart(structure.getvalue(), tuple(map(Shape.of, tensors))), tensors


def put_together(structure: bytes, tensors: Sequence[torch.Tensor]) -> nn.Module:
    """The block stack with these weights, which it shares.

    Args:
        structure: from `take_apart`, in a process of the same user and versions.
        tensors: in the order of its `shapes`.
    """

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: Any) -> torch.Tensor:
            index, is_parameter = number
            return nn.Parameter(tensors[index], requires_grad=False) if is_parameter else tensors[index]

    return Unpickler(io.BytesIO(structure)).load()


def shared_memory(shapes: Sequence[Shape]) -> int:
    """The file descriptor of new memory for tensors of these shapes, which `mapped` gives."""
    fd = os.memfd_create("weights")
    os.ftruncate(fd, max(1, sum(map(_room, shapes))))
    return fd


def mapped(fd: int, shapes: Sequence[Shape]) -> list[torch.Tensor]:
    """Tensors in shared memory; those of every process are the same memory."""
    memory = torch.frombuffer(mmap.mmap(fd, 0), dtype=torch.uint8)
    tensors, begin = [], 0
    for each in shapes:
        tensors.append(memory[begin : begin + each.nbytes].view(each.dtype).view(each.shape))
        begin += _room(each)
    return tensors


def received(memory: int | None, shapes: Sequence[Shape], device: torch.device) -> list[torch.Tensor]:
    """The weights in a further process: shared memory, or what the first process sends by `sent`.

    Args:
        memory: the file descriptor of the memory; None where they are sent.
        shapes: of all of them.
        device: where they are to be.
    """
    if memory is not None:
        return mapped(memory, shapes)
    tensors = [torch.empty(each.shape, dtype=each.dtype, device=device) for each in shapes]
    sent(tensors)
    return tensors


def sent(tensors: Sequence[torch.Tensor]) -> None:
    """Sends the first process's tensors to all others; all call it, the others with memory to be written."""
    for tensor in tensors:
        dist.broadcast(tensor.contiguous(), 0)


def _room(shape: Shape) -> int:
    return -(-shape.nbytes // _ALIGNMENT) * _ALIGNMENT


def _itself(each: Any) -> Any:
    return each
