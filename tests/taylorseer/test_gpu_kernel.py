"""The GPU kernel without a GPU: its arithmetic in Triton's interpreter, and that it compiles for the GPUs we name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# In a process of its own: Triton decides when a kernel is defined whether it is interpreted.
INTERPRETED = """
import itertools
import torch
from taylorseer.gpu_kernel import weighted_sum

for dtype, count in itertools.product((torch.float32, torch.bfloat16, torch.float16), (1, 2, 4)):
    weights = [-0.1, 0.5, -1.2, 1.8][:count]
    slots = torch.randn(count, 3, 4099, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = slots.clone()
    with torch.no_grad():
        result = weighted_sum(slots, weights, torch.empty_like(slots[0]))
    exact = torch.einsum("s,sij->ij", torch.tensor(weights, dtype=torch.float64), slots.double())
    terms = torch.einsum("s,sij->ij", torch.tensor(weights, dtype=torch.float64).abs(), slots.double().abs())
    # One rounding to the dtype, and before that one to float32 of each of at most 4 products and sums; where that tips
    # the last rounding over, another half of it.
    allowed = torch.finfo(dtype).eps * exact.abs() + 8 * torch.finfo(torch.float32).eps * terms
    assert result.dtype == dtype and result.shape == exact.shape, (dtype, count)
    assert ((result.double() - exact).abs() <= allowed + torch.finfo(dtype).smallest_normal).all(), (dtype, count)
    assert torch.equal(slots, before), (dtype, count)
"""

COMPILED = """
import itertools
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from taylorseer.gpu_kernel import kernel

count = 3
# What a call finds out of its arguments: torch's memory is aligned, and so is that of slots of whole 16 bytes.
aligned = {(0, i): [["tt.divisibility", 16]] for i in range(count)} | {(2,): [["tt.divisibility", 16]]}
aligned |= {(3,): [["tt.divisibility", 16]]}
for element, architecture in itertools.product(("fp32", "bf16"), (80, 89, 90, 120)):
    signature = {
        "slots": (f"*{element}",) * count, "weights": ("fp32",) * count, "out": f"*{element}", "numel": "i64",
        "BLOCK": "constexpr",
    }
    source = ASTSource(kernel, signature=signature, constexprs={(4,): 4096}, attrs=aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4}).asm["ptx"]
    print(element, architecture, *map(ptx.count, ("ld.global.v4", "ld.global", "st.global.v4", "st.global")))
"""


def run(script: str, **environment: str) -> str:
    pytest.importorskip("triton", reason="OpenAI's Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_the_sum_of_float64_but_for_rounding():
    run(INTERPRETED, TRITON_INTERPRET="1")


def test_it_compiles_and_touches_memory_in_whole_vectors_once(tmp_path):
    """4096 elements of a block are 32 of each of 128 threads: 8 or 4 loads of 16 bytes from each slot, no others."""
    output = run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
    loads = {"fp32": 8, "bf16": 4}
    expected = [
        f"{element} {architecture} {3 * each} {3 * each} {each} {each}"
        for element, each in loads.items()
        for architecture in (80, 89, 90, 120)
    ]
    assert output.splitlines() == expected
