"""The forecast itself: a weighted sum of anchors in one pass over memory, accumulated in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch

# takes (slots, weights, memory for the sum) and returns that memory
Kernel = Callable[[torch.Tensor, list[float], torch.Tensor], torch.Tensor]

_ROUNDING = 1e-9  # of a sum of weights
_CHUNK = 1 << 20  # elements; the fastest of 2^15 to 2^22 on two cores (an L2 cache of 1 MiB each)

_log = logging.getLogger(__name__)


def weighted_sum(slots: torch.Tensor, weights: list[float], out: torch.Tensor | None = None) -> torch.Tensor:
    """sum_j weights[j] * slots[j], accumulated in float32; slots of weight 0 are not read.

    A kernel reads every slot once and writes once. On a CPU it is written in C, for float32 and bfloat16, and built at
    installation if there is a compiler. On a GPU it is written in OpenAI's Triton, which torch's CUDA builds include.
    Without a kernel, torch takes several passes.

    Args:
        slots: (slot, *feature), floating, contiguous.
        weights: one per slot, not all 0.
        out: (*feature) in the dtype and on the device of the slots, contiguous: memory for the sum, not of a slot.

    Returns:
        (*feature) in the dtype of the slots: `out`, or memory of its own.
    """
    kernel = _kernel(slots.device, slots.dtype) or _by_torch
    return kernel(slots, weights, torch.empty_like(slots[0]) if out is None else out)


def _by_torch(slots: torch.Tensor, weights: list[float], out: torch.Tensor) -> torch.Tensor:
    """Two slots whose weights sum to 1, as at order 1, by `torch.lerp`, which computes in float32 inside.

    Otherwise chunk by chunk, so that the sum stays in the processor's cache while the slots are added to it.
    """
    used = [(slots[i], weight) for i, weight in enumerate(weights) if weight != 0.0]
    if len(used) == 2 and abs(sum(weights) - 1) < _ROUNDING:
        (first, _), (second, weight) = used
        return torch.lerp(first, second, weight, out=out)
    size = out.numel() if out.is_cuda else _CHUNK
    for begin in range(0, out.numel(), size):
        chunk = slice(begin, begin + size)
        (first, first_weight), *rest = ((slot.view(-1)[chunk], weight) for slot, weight in used)
        total = first.float() * first_weight
        for slot, weight in rest:
            total.add_(slot.float(), alpha=weight)
        out.view(-1)[chunk] = total
    return out


@cache
def _kernel(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The kernel for a device, tried once there; None if there is none, which costs nothing but speed."""
    try:
        if device.type == "cuda":
            from taylorseer.gpu_kernel import weighted_sum as on_gpu

            probe = torch.ones(2, 16, device=device, dtype=dtype)
            on_gpu(probe, [0.5, 0.5], torch.empty_like(probe[0]))
            return on_gpu
        if device.type == "cpu":
            from taylorseer.cpu_kernel import DTYPES
            from taylorseer.cpu_kernel import weighted_sum as on_cpu

            return on_cpu if dtype in DTYPES else None
    except Exception as error:  # no package, no C compiler, an unknown GPU
        kind = {"cpu": "CPU", "cuda": "GPU"}[device.type]
        _log.warning("forecasts take several passes over memory: their %s kernel is not available (%s)", kind, error)
    return None
