"""The forecast itself: a weighted sum of anchors in one pass over memory, accumulated in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch

_ROUNDING = 1e-9  # of a sum of weights
_CHUNK = 1 << 20  # elements; the fastest of 2^15 to 2^22 on two cores (an L2 cache of 1 MiB each)

_log = logging.getLogger(__name__)


def weighted_sum(slots: torch.Tensor, weights: list[float], out: torch.Tensor | None = None) -> torch.Tensor:
    """sum_j weights[j] * slots[j], accumulated in float32; slots of weight 0 are not read.

    On a CPU two slots whose weights sum to 1, as order 1 has them, are combined by `torch.lerp`, which computes in
    float32 inside; others chunk by chunk, so that the sum stays in the processor's cache while slot after slot joins
    it. On a GPU one kernel reads every slot once, where OpenAI's Triton is installed, as torch's own CUDA builds bring
    it.

    Args:
        slots: (slot, *feature), floating, contiguous.
        weights: one per slot, not all 0.
        out: (*feature) in the dtype and on the device of the slots, contiguous: memory for the sum, not of a slot.

    Returns:
        (*feature) in the dtype of the slots: `out`, or memory of its own.
    """
    used = [(slots[i], weight) for i, weight in enumerate(weights) if weight != 0.0]
    result = torch.empty_like(slots[0]) if out is None else out
    if slots.is_cuda and (kernel := _cuda_kernel()) is not None:
        return kernel(tuple(slot for slot, _ in used), tuple(weight for _, weight in used), result)
    average = abs(sum(weights) - 1) < _ROUNDING
    if average and len(used) == 2:
        (first, _), second = used
        return torch.lerp(first, *second, out=result)
    sum_into = _average_into if average else _sum_into
    if slots.is_cuda or result.numel() <= _CHUNK:
        sum_into(result, used)
    else:
        for begin in range(0, result.numel(), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            sum_into(result.view(-1)[chunk], [(slot.view(-1)[chunk], weight) for slot, weight in used])
    return result


def _average_into(result: torch.Tensor, terms: list[tuple[torch.Tensor, float]]) -> None:
    """Writes the sum of slot * weight, of weights that sum to 1.

    Slot after slot is mixed into the average of those before it: one pass fewer than a product and sums. Largest
    weights first, the weights so far never sum to less than the first or 1, which divides.
    """
    (first, so_far), *rest = sorted(terms, key=lambda term: -term[1])
    total, average = _float32_for(result), first
    for slot, weight in rest:
        so_far += weight
        average = torch.lerp(average.float(), slot.float(), weight / so_far, out=total)
    if average is not result:
        result.copy_(average)


def _sum_into(result: torch.Tensor, terms: list[tuple[torch.Tensor, float]]) -> None:
    """Writes the sum of slot * weight."""
    (first, first_weight), *rest = terms
    total = torch.mul(first.float(), first_weight, out=_float32_for(result))
    for slot, weight in rest:
        total.add_(slot.float(), alpha=weight)
    if total is not result:
        result.copy_(total)


def _float32_for(result: torch.Tensor) -> torch.Tensor:
    """The result's own memory, or as much in float32."""
    return result if result.dtype == torch.float32 else torch.empty_like(result, dtype=torch.float32)


@cache
def _cuda_kernel() -> Callable[[tuple[torch.Tensor, ...], tuple[float, ...], torch.Tensor], torch.Tensor] | None:
    """The kernel for GPUs, tried once; None where it cannot be had, which costs speed and nothing else."""
    try:
        from taylorseer.gpu_kernel import weighted_sum as kernel

        probe = torch.ones(16, device="cuda")
        kernel((probe, probe), (0.5, 0.5), torch.empty_like(probe))
    except Exception as error:  # no package, no C compiler for its launcher, a GPU that it does not know
        _log.warning("forecasts take several passes over memory: their GPU kernel is not available (%s)", error)
        return None
    return kernel
