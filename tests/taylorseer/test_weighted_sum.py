"""The weighted sum of anchors against float64."""

from __future__ import annotations

import pytest
import torch

from taylorseer.weighted_sum import weighted_sum


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
    ],
)
def test_it_is_that_of_float64_but_for_one_rounding(dtype, weights, tokens):
    """To the model's dtype once, and before that in float32: a rounding of each of at most 4 terms."""
    slots = torch.randn(len(weights), tokens, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.einsum("s,sij->ij", torch.tensor(weights, dtype=torch.float64), slots.double())
    result = weighted_sum(slots, weights)
    assert result.dtype == dtype
    terms = torch.einsum("s,sij->ij", torch.tensor(weights, dtype=torch.float64).abs(), slots.double().abs())
    allowed = torch.finfo(dtype).eps / 2 * expected.abs() + 4 * torch.finfo(torch.float32).eps * terms
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
