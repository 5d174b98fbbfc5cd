"""Slots and line."""

import pytest

from plugin.admission import Admission, LineFull


def test_slots_then_line_then_refusal():
    admission = Admission(slots=2, max_waiting=1)
    for expected in ((1, 0), (2, 0), (2, 1)):
        admission.enter()
        assert (admission.in_flight, admission.waiting) == expected
    with pytest.raises(LineFull, match="2 requests are in flight and 1 wait"):
        admission.enter()
    admission.leave()
    admission.enter()
    assert (admission.in_flight, admission.waiting) == (2, 1)


def test_without_a_line_the_slots_are_the_limit():
    admission = Admission(slots=1, max_waiting=0)
    admission.enter()
    with pytest.raises(LineFull):
        admission.enter()
