"""The weighted sum of anchors as one GPU kernel, in OpenAI's Triton (the language, not the server)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 4096  # elements of each program: 32 for each thread, in loads of 16 bytes if the memory is aligned


@triton.jit  # type: ignore[untyped-decorator]
def kernel(slots, weights, out, numel, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Reads each slot once, accumulates in float32 and writes once; one program for each BLOCK elements."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in tl.static_range(len(slots)):
        total += weights[i] * tl.load(slots[i] + at, mask=inside).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def weighted_sum(slots: torch.Tensor, weights: list[float], out: torch.Tensor) -> torch.Tensor:
    """sum_j weights[j] * slots[j], accumulated in float32.

    Args:
        slots: (slot, *feature), floating, contiguous, on a GPU.
        weights: one per slot, not all 0; slots of weight 0 are not read.
        out: (*feature) in the dtype of the slots, contiguous: memory for the sum.

    Returns:
        `out`.
    """
    numel = out.numel()
    terms = [(slots[i], weight) for i, weight in enumerate(weights) if weight != 0.0]
    used, factors = zip(*terms, strict=True)
    with torch.cuda.device_of(out):
        kernel[(triton.cdiv(numel, _BLOCK),)](used, factors, out, numel, BLOCK=_BLOCK, num_warps=4)
    return out
