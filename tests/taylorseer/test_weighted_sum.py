"""The weighted sum of anchors against float64."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch

from taylorseer import forecast_weights
from taylorseer.weighted_sum import _kernel, weighted_sum
from tests.support.paths import ROOT

WEIGHTS_OF_ALL_ORDERS = [
    forecast_weights("taylor", order, [5 * i for i in range(order + 1)], 5 * order + 2).tolist() for order in range(9)
]


@pytest.fixture(params=["kernel", "torch"], autouse=True)
def way(request, monkeypatch):
    """Each test twice: by the kernel, and as it is where there was no compiler."""
    if request.param == "torch":
        monkeypatch.setattr("taylorseer.weighted_sum._kernel", lambda device, dtype: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "tokens", [7, 40_009]
)  # 40,009 x 33 elements of 16 bits are summed in two chunks, the last one shorter
@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [0.0, 1.0, 0.0],
        [-0.8, 1.8],
        [1.4, 0.0, -0.4],
        [0.25, 0.75],
        [0.3, 0.9],  # of a predictor whose weights do not sum to 1
        [0.3, -1.2, 1.9],
        [-0.1, 0.5, -1.2, 1.8],
        *WEIGHTS_OF_ALL_ORDERS,
    ],
)
def test_it_is_that_of_float64_but_for_one_rounding(dtype, weights, tokens):
    """To the model's dtype once, and before that in float32: a rounding of each weight, product and sum.

    Where those tip the last rounding over, another half of it.
    """
    slots = torch.randn(len(weights), tokens, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.einsum("s,sij->ij", torch.tensor(weights, dtype=torch.float64), slots.double())
    result = weighted_sum(slots, weights)
    assert result.dtype == dtype
    terms = torch.einsum("s,sij->ij", torch.tensor(weights, dtype=torch.float64).abs(), slots.double().abs())
    allowed = torch.finfo(dtype).eps / 2 * expected.abs() + len(weights) * torch.finfo(torch.float32).eps * terms
    # Numbers too small for float16's own precision are multiples of its smallest one.
    assert ((result.double() - expected).abs() <= allowed + torch.finfo(dtype).smallest_normal).all()


@pytest.mark.parametrize("weights", [[-0.8, 1.8], [1.0, 0.0], [0.3, -1.2, 1.9]])
def test_the_slots_are_left_as_they_are_and_the_sum_is_memory_of_its_own(weights):
    slots = torch.randn(len(weights), 5)
    before = slots.clone()
    weighted_sum(slots, weights).zero_()
    assert torch.equal(slots, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [[-0.8, 1.8], [1.0, 0.0], [0.3, 0.9], [0.3, -1.2, 1.9]])
@pytest.mark.parametrize("tokens", [7, 40_009])
def test_the_sum_is_written_where_it_is_asked_for(weights, tokens, dtype):
    slots = torch.randn(len(weights), tokens, 33).to(dtype)
    out = torch.full((tokens, 33), torch.nan, dtype=dtype)
    assert weighted_sum(slots, weights, out) is out
    assert torch.equal(out, weighted_sum(slots, weights))


def test_slots_of_weight_zero_are_not_read():
    slots = torch.tensor([[1.0], [torch.nan], [2.0]])
    assert weighted_sum(slots, [-1.0, 0.0, 2.0]).item() == 3.0


@pytest.mark.parametrize("numel", [30, 31, 1 << 16])  # the last is summed in vectors and by two threads
def test_the_nearest_bfloat16_is_taken_and_of_two_equally_near_ones_the_even(numel):
    """2b - a is exact in float32 where both are of few bits, and torch rounds from there."""
    generator = torch.Generator().manual_seed(0)
    slots = torch.randint(-256, 257, (2, numel), generator=generator).bfloat16() * torch.tensor([[1.0], [64.0]])
    slots = slots.bfloat16()
    exact = 2 * slots[1].float() - slots[0].float()
    ties = (exact.view(torch.int32) & 0xFFFF) == 0x8000
    assert ties.sum() > numel // 50 or numel < 100
    torch.set_num_threads(2)
    assert torch.equal(weighted_sum(slots, [-1.0, 2.0]), exact.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_so(dtype):
    """A request whose numbers overflowed must fail for that, and not get a wrong picture."""
    kinds = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, 1e30, 1.0, 0.0]).to(dtype)
    if dtype == torch.bfloat16:  # every NaN there is
        kinds = torch.cat([kinds, torch.arange(0x7F81, 0x8000).to(torch.int16).view(dtype)])
    first, second = torch.cartesian_prod(kinds, kinds).T
    slots = torch.stack([first, second]).contiguous()
    result = weighted_sum(slots, [-1.5, 2.5])
    expected = (slots[1].double() * 2.5 - slots[0].double() * 1.5).to(dtype)
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.isinf(), expected.isinf())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [1, 2, 8])
def test_bits_do_not_depend_on_the_number_of_threads(order, dtype):
    slots = torch.randn(order + 1, 100_003, generator=torch.Generator().manual_seed(0)).to(dtype)
    sums = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        sums.append(weighted_sum(slots, WEIGHTS_OF_ALL_ORDERS[order]))
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numel", [1, 2, 31, 33, 65_537])
def test_nothing_beside_the_sum_is_written(numel, dtype):
    memory = torch.full((numel + 64,), 7.0, dtype=dtype)
    torch.set_num_threads(2)
    weighted_sum(torch.zeros(3, numel, dtype=dtype), [1.0, -3.0, 3.0], memory[32 : numel + 32])
    assert (memory != 7).sum() == numel


@pytest.mark.parametrize("way", ["kernel"], indirect=True)
@pytest.mark.parametrize(
    ("weights", "out"),
    [
        ([-1.0, 2.0, 0.0], torch.zeros(4, 6)),
        ([-1.0, 2.0], torch.zeros(4, 5)),
        ([0.0, 0.0], torch.zeros(4, 6)),
        ([-1.0, 2.0], torch.zeros(6, 4).T),
        ([-1.0, 2.0], torch.zeros(4, 6, dtype=torch.bfloat16)),
        ([-1.0, 2.0], torch.zeros(4, 6, device="meta")),
    ],
    ids=["a weight too many", "too small", "nothing to sum", "not contiguous", "another dtype", "another device"],
)
def test_memory_that_does_not_fit_is_refused_and_not_written_beside(weights, out):
    with pytest.raises(ValueError, match="do not fit together"):
        weighted_sum(torch.zeros(2, 4, 6), weights, out)


def compiler() -> str:
    command = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(command) or pytest.skip("no C compiler")


@pytest.mark.parametrize("way", ["kernel"], indirect=True)
def test_the_kernel_is_built_if_there_is_a_compiler():
    """The build is optional: only this test shows that it failed."""
    compiler()
    assert _kernel(torch.device("cpu"), torch.float32)
    assert _kernel(torch.device("cpu"), torch.bfloat16)
    assert _kernel(torch.device("cpu"), torch.float16) is None


@pytest.mark.parametrize("way", ["kernel"], indirect=True)
def test_the_kernel_compiles_without_warnings(tmp_path):
    source = ROOT / "taylorseer/cpu_kernel.c"
    flags = ["-std=gnu11", "-O2", "-fopenmp", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command = [compiler(), *flags, "-c", str(source), "-o", str(tmp_path / "kernel.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["kernel"], indirect=True)
def test_a_kernel_that_was_not_built_is_reported_once_and_torch_does_its_work(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "taylorseer.cpu_kernel", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _kernel.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert weighted_sum(torch.tensor([[1.0], [3.0]]), [-1.0, 2.0]).item() == 5.0
    finally:
        _kernel.cache_clear()
    (record,) = caplog.records
    assert "their CPU kernel is not available (it was not built" in record.getMessage()
