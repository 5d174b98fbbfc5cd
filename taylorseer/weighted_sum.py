"""The forecast itself: a weighted sum of anchors in one pass over memory, accumulated in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch

_ROUNDING = 1e-12  # of a sum of weights
_CHUNK = 1 << 20  # elements; the fastest of 2^15 to 2^22 on two cores (an L2 cache of 2 MiB each)

_log = logging.getLogger(__name__)


def weighted_sum(slots: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """sum_j weights[j] * slots[j], accumulated in float32; slots of weight 0 are not read.

    On a CPU two slots whose weights sum to 1, as order 1 has them, are combined by `torch.lerp`, which computes in
    float32 inside; more of them in one pass for each slot, those of 16 bits chunk by chunk, so that their sum in
    float32 stays in cache. On a GPU one kernel reads every slot once, where OpenAI's Triton is installed, as torch's
    own CUDA builds bring it.

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
    if slots.is_cuda or first.dtype == torch.float32:
        return _sum_of(used)
    result = torch.empty_like(first)
    scratch = torch.empty(min(_CHUNK, first.numel()), dtype=torch.float32)
    for begin in range(0, first.numel(), _CHUNK):
        part = result.view(-1)[begin : begin + _CHUNK]
        total = scratch[: part.numel()]
        _sum_into(total, [(slot.view(-1)[begin : begin + _CHUNK], weight) for slot, weight in used])
        part.copy_(total)
    return result


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
