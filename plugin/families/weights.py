"""What a module's weights are made of: plain tensors, or those behind quantised ones, which libraries hold in forms of
their own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


def is_quantized(module: nn.Module) -> bool:
    """Whether some weights are quantised: they are of a library's own class, or of integers."""
    return any(type(weight) is not nn.Parameter or not weight.is_floating_point() for weight in module.parameters())


def plain_tensors(weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a weight is made of, by name: itself without one, or the parts of a quantised weight.

    torchao's classes name their parts in `__tensor_flatten__` (the protocol of torch's tensor subclasses); bitsandbytes
    keeps scales beside the packed numbers, in `quant_state`; a GGUF file's blocks hold theirs.
    """
    if hasattr(weight, "__tensor_flatten__"):
        names, _ = weight.__tensor_flatten__()
        for name in names:
            if (part := getattr(weight, name)) is not None:
                yield from ((f".{name}{inner}", tensor) for inner, tensor in plain_tensors(part))
        return
    with torch._C.DisableTorchFunctionSubclass():  # else an operation on a part of a GGUF weight gives such a weight
        yield "", weight.detach().as_subclass(torch.Tensor)
    yield from _beside(getattr(weight, "quant_state", None))


def _beside(state: object) -> Iterator[tuple[str, torch.Tensor]]:
    """What bitsandbytes keeps beside a weight (0.50.2, functional.QuantState): scales, which may be quantised too."""
    for name in ("absmax", "code", "offset"):
        if isinstance(part := getattr(state, name, None), torch.Tensor):
            yield f".{name}", part
    if inner := getattr(state, "state2", None):
        yield from ((f".state2{name}", tensor) for name, tensor in _beside(inner))


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers in memory, what is shared counted once."""
    tensors = [each for weight in (*module.parameters(), *module.buffers()) for _, each in plain_tensors(weight)]
    return sum({each.data_ptr(): each.nbytes for each in tensors}.values())
