"""The GPU kernel without a GPU: its arithmetic in Triton's interpreter, and that it compiles for the GPUs we name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# In a process of its own: Triton decides when a kernel is defined whether it is interpreted.
INTERPRETED = """
import sys
import torch
from taylorseer.gpu_kernel import weighted_sum

dtype = getattr(torch, sys.argv[1])
weights = [-0.1, 0.5, -1.2, 1.8][:int(sys.argv[2])]
slots = torch.randn(len(weights), 3, 4099, generator=torch.Generator().manual_seed(0)).to(dtype)
before = slots.clone()
with torch.no_grad():
    result = weighted_sum(slots, weights, torch.empty_like(slots[0]))
exact = torch.einsum("s,sij->ij", torch.tensor(weights, dtype=torch.float64), slots.double())
terms = torch.einsum("s,sij->ij", torch.tensor(weights, dtype=torch.float64).abs(), slots.double().abs())
# One rounding to the dtype, and before that one to float32 of each of at most 4 products and sums; where that tips the
# last rounding over, another half of it.
allowed = torch.finfo(dtype).eps * exact.abs() + 8 * torch.finfo(torch.float32).eps * terms
assert result.dtype == dtype and result.shape == exact.shape
assert ((result.double() - exact).abs() <= allowed + torch.finfo(dtype).smallest_normal).all()
assert torch.equal(slots, before)
"""

COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from taylorseer.gpu_kernel import kernel

element, count, architecture = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
signature = {
    "slots": (f"*{element}",) * count, "weights": ("fp32",) * count, "out": f"*{element}", "numel": "i64",
    "BLOCK": "constexpr",
}
# What a call finds out of its arguments: torch's memory is aligned, and so is that of slots of whole 16 bytes.
aligned = {(0, i): [["tt.divisibility", 16]] for i in range(count)} | {(2,): [["tt.divisibility", 16]]}
aligned |= {(3,): [["tt.divisibility", 16]]}
source = ASTSource(kernel, signature=signature, constexprs={(4,): 4096}, attrs=aligned)
ptx = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4}).asm["ptx"]
print(ptx.count("ld.global.v4"), ptx.count("ld.global"), ptx.count("st.global.v4"), ptx.count("st.global"))
"""


def run(script: str, *arguments: str, **environment: str) -> str:
    pytest.importorskip("triton", reason="OpenAI's Triton is not installed")
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_the_sum_of_float64_but_for_rounding(dtype, count):
    run(INTERPRETED, dtype, str(count), TRITON_INTERPRET="1")


@pytest.mark.parametrize("architecture", [80, 89, 90, 120])
@pytest.mark.parametrize("element", ["fp32", "bf16"])
def test_it_compiles_and_touches_memory_in_whole_vectors_once(element, architecture, tmp_path):
    """4096 elements of a block are 32 of each of 128 threads: 8 or 4 loads of 16 bytes from each slot, no others."""
    output = run(COMPILED, element, "3", str(architecture), TRITON_CACHE_DIR=str(tmp_path))
    each = 8 if element == "fp32" else 4
    assert output.split() == [str(3 * each), str(3 * each), str(each), str(each)]
