"""The ring of anchors: what it keeps, what it owns, what it forecasts."""

import pytest
import torch

from taylorseer import Anchors
from taylorseer.weighted_sum import weighted_sum
from tests.support.recursion import Recursion


def test_forecast_equals_the_recursion_in_float32():
    torch.manual_seed(0)
    anchors, recursion = Anchors("taylor", 2), Recursion(2)
    for step in (0, 1, 2, 7, 12):
        feature = torch.randn(2, 5, 3)
        anchors.write(step, feature)
        recursion.full(step, feature.double())
    # weights of up to 4 and three float32 terms: a few units in the last place
    torch.testing.assert_close(anchors.forecast(15).double(), recursion.forecast(15), rtol=1e-6, atol=1e-5)


def test_memory_is_allocated_once_and_counted_exactly():
    anchors = Anchors("taylor", 2)
    assert anchors.nbytes == 0
    for step in range(6):
        anchors.write(step, torch.full((4, 8), float(step), dtype=torch.bfloat16))
        assert anchors.nbytes == 3 * 4 * 8 * 2
    assert anchors.steps == (3, 4, 5)
    anchors.clear()
    assert anchors.nbytes == 0
    assert anchors.steps == ()


def test_anchors_own_their_memory():
    anchors, buffer = Anchors("reuse", 0), torch.ones(3)
    anchors.write(0, buffer)
    buffer.zero_()  # as an engine does with its output buffer
    assert anchors.forecast(1).tolist() == [1.0, 1.0, 1.0]
    anchors.forecast(1).zero_()
    assert anchors.forecast(2).tolist() == [1.0, 1.0, 1.0]


def test_features_that_gradients_flow_through_leave_their_graph_behind():
    anchors = Anchors("taylor", 1)
    for step in (0, 1):
        anchors.write(step, torch.full((3,), float(step), requires_grad=True) * 2)
    forecast = anchors.forecast(2)
    assert forecast.tolist() == [4.0, 4.0, 4.0]
    assert not forecast.requires_grad


def test_bfloat16_anchors_are_summed_in_float32():
    """256 and 257 differ in bfloat16's last place only; a sum of differences kept in bfloat16 would lose it."""
    anchors = Anchors("taylor", 1)
    anchors.write(0, torch.tensor([256.0], dtype=torch.bfloat16))
    anchors.write(1, torch.tensor([258.0], dtype=torch.bfloat16))
    forecast = anchors.forecast(4)
    assert forecast.dtype == torch.bfloat16
    assert forecast.item() == 264.0


def test_a_step_written_twice_keeps_the_later_features():
    anchors = Anchors("reuse", 1)
    anchors.write(0, torch.tensor([1.0]))
    anchors.write(0, torch.tensor([2.0]))
    assert anchors.steps == (0,)
    assert anchors.forecast(1).item() == 2.0


def test_anchors_before_the_first_step_are_not_used():
    anchors = Anchors("taylor", 2, first_step=1)
    for step, value in ((0, 100.0), (1, 1.0), (2, 2.0)):
        anchors.write(step, torch.tensor([value]))
    assert anchors.steps == (1, 2)
    assert anchors.forecast(5).item() == pytest.approx(5.0)


def test_forecast_without_anchors_is_refused():
    with pytest.raises(LookupError, match="step 3 cannot be forecast"):
        Anchors("taylor", 1).forecast(3)


@pytest.mark.parametrize("other", [torch.zeros(4), torch.zeros(3, dtype=torch.float16)])
def test_features_of_another_kind_are_refused(other):
    anchors = Anchors("taylor", 1)
    anchors.write(0, torch.zeros(3))
    with pytest.raises(ValueError, match=r"must be \(3,\) torch\.float32 on cpu"):
        anchors.write(1, other)


def test_weighted_sum_reads_no_slot_of_weight_0():
    slots = torch.tensor([[float("nan")], [2.0], [3.0]])
    assert weighted_sum(slots, [0.0, -1.0, 2.0]).item() == 4.0


def test_features_computed_in_reserved_memory_are_kept_without_a_copy():
    anchors, like = Anchors("reuse", 1), torch.empty(3)
    for step in range(5):
        slot = anchors.reserve(step, like)
        slot.fill_(float(step))
        anchors.write(step, slot)
        assert anchors.reserve(step, like).data_ptr() == slot.data_ptr()
        anchors.write(step, slot)
        assert anchors.forecast(step + 1).tolist() == [float(step)] * 3
    assert anchors.steps == (3, 4)
    assert anchors.nbytes == 2 * 3 * 4


def test_reserved_memory_is_not_read_before_it_is_written():
    anchors, like = Anchors("taylor", 1), torch.empty(2)
    for step in (0, 1):
        anchors.write(step, torch.full((2,), float(step)))
    anchors.reserve(2, like).fill_(torch.nan)  # over the anchor of step 0; an engine that fails leaves it like this
    assert anchors.steps == (1,)
    assert anchors.forecast(3).tolist() == [1.0, 1.0]
    anchors.write(2, torch.tensor([2.0, 2.0]))
    assert anchors.forecast(3).tolist() == [3.0, 3.0]


def test_reserved_memory_is_of_the_first_shape():
    anchors = Anchors("taylor", 1)
    anchors.reserve(0, torch.empty(2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"features are \(3,\) torch.bfloat16 on cpu, must be \(2,\) torch.bfloat16"):
        anchors.reserve(1, torch.empty(3, dtype=torch.bfloat16))
