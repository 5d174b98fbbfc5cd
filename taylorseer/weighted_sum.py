"""The forecast itself: a weighted sum of anchors in one pass over memory, accumulated in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, lru_cache

import torch

_ROUNDING = 1e-12  # of a sum of weights
_ONE_ROW = 1 << 16  # elements; up to here a second thread costs more than it brings
_PARTS = 3  # of a weight: three numbers of 8 bits each have the 24 of a float32

_log = logging.getLogger(__name__)


def weighted_sum(slots: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """sum_j weights[j] * slots[j], accumulated in float32; slots of weight 0 are not read.

    On a CPU two slots whose weights sum to 1, as order 1 has them, are combined by `torch.lerp`, which computes in
    float32 inside, and others of bfloat16 by `torch.embedding_bag`, whose bags of weighted rows are just this sum: both
    read each slot once and write once. What is left takes a pass for each slot, which in float32 is as fast. On a GPU
    one kernel reads every slot once, where OpenAI's Triton is installed, as torch's own CUDA builds bring it.

    Args:
        slots: (slot, *feature), floating, contiguous.
        weights: one per slot, not all 0.

    Returns:
        (*feature) in the dtype of the slots.
    """
    used = [(slots[i], weight) for i, weight in enumerate(weights) if weight != 0.0]
    if slots.is_cuda and (kernel := _cuda_kernel()) is not None:
        return kernel(*zip(*used, strict=True))
    (first, first_weight), *rest = used
    if len(rest) == 1 and abs(first_weight + rest[0][1] - 1) < _ROUNDING:
        return torch.lerp(first, *rest[0])
    if slots.dtype == torch.bfloat16 and not slots.is_cuda:
        return _sum_of_bags(slots, weights)
    return _sum_of(used)


def _sum_of_bags(slots: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """The sum of bfloat16 slots: each row of the result is one bag, the rows at its place in every slot."""
    shape = slots.shape[1:]
    numel = shape.numel()
    width = numel if numel <= _ONE_ROW else shape[-1]
    rows = numel // width
    parts = [(slot, part) for slot, weight in enumerate(weights) for part in _parts(weight)]
    bag = len(parts)
    of_row_0 = torch.tensor([slot * rows for slot, _ in parts])  # (bag,)
    of_parts = torch.tensor([part for _, part in parts], dtype=slots.dtype)  # (bag,)
    total, *_ = torch.embedding_bag(
        slots.view(-1, width),  # (slot * rows, width)
        (torch.arange(rows).unsqueeze(1) + of_row_0).view(-1),  # (rows * bag,)
        torch.arange(0, rows * bag, bag),
        per_sample_weights=of_parts.repeat(rows),
        mode=0,  # the sum
    )
    return total.view(shape)


@lru_cache(maxsize=4096)
def _parts(weight: float) -> tuple[float, ...]:
    """Numbers that bfloat16 holds, none of them 0, whose sum is the weight as near as float32 has it: `embedding_bag`
    wants weights of the rows' dtype. Only a row's first reading is from memory. Kept, as the weights of a schedule come
    again with every request."""
    parts = []
    for _ in range(_PARTS):
        part = torch.tensor(weight, dtype=torch.bfloat16).item()
        if part:
            parts.append(part)
        weight -= part
    return tuple(parts)


def _sum_of(terms: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
    total = torch.empty_like(terms[0][0], dtype=torch.float32)
    _sum_into(total, terms)
    return total.to(terms[0][0].dtype)


def _sum_into(total: torch.Tensor, terms: list[tuple[torch.Tensor, float]]) -> None:
    """Writes the sum of slot * weight into a float32 tensor of the slots' shape."""
    (first, first_weight), *rest = terms
    if first.dtype == torch.float32:
        torch.mul(first, first_weight, out=total)
    else:
        total.copy_(first).mul_(first_weight)  # torch.mul would round to the slots' dtype before it writes
    for slot, weight in rest:
        total.add_(slot, alpha=weight)


@cache
def _cuda_kernel() -> Callable[[tuple[torch.Tensor, ...], tuple[float, ...]], torch.Tensor] | None:
    """The kernel for GPUs, tried once; None where it cannot be had, which costs speed and nothing else."""
    try:
        from taylorseer.gpu_kernel import weighted_sum as kernel

        probe = torch.ones(16, device="cuda")
        kernel((probe, probe), (0.5, 0.5))
    except Exception as error:  # no package, no C compiler for its launcher, a GPU that it does not know
        _log.warning("forecasts take several passes over memory: their GPU kernel is not available (%s)", error)
        return None
    return kernel
