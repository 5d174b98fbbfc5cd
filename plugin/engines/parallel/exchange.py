"""Tensors from one process to another."""

from __future__ import annotations

import torch
import torch.distributed as dist

from plugin.engines.parallel.weights import Shape


def send(tensor: torch.Tensor, rank: int) -> None:
    """Sends a tensor to a process that calls `receive`."""
    if tensor.numel():
        dist.send(tensor.contiguous(), rank)


def receive(shape: Shape, rank: int, device: torch.device) -> torch.Tensor:
    """The tensor that a process sends."""
    tensor = torch.empty(shape.shape, dtype=shape.dtype, device=device)
    if tensor.numel():
        dist.recv(tensor, rank)
    return tensor
