"""The batch limit: closed forms of batch time, and the measurement kept."""

from __future__ import annotations

import json
import math

import pytest

from plugin.engines import make_engine
from plugin.engines.batch_limit import calibrated_rows, find_batch_limit
from plugin.families import family_of


@pytest.mark.parametrize(
    ("seconds_of", "expected"),
    [
        (lambda rows: 1.0, 8),  # a device that a batch of 8 does not fill
        (lambda rows: float(rows), 1),  # one row fills it
        (lambda rows: 1.0 + rows, 8),  # 2/3, 4/5, 8/9 of its best
        (lambda rows: max(2.0, float(rows)), 2),
        (lambda rows: max(4.0, rows * 1.01), 4),
        (lambda rows: math.inf if rows > 2 else 1.0, 2),  # no room for more
    ],
    ids=["flat", "linear", "overhead", "limit at 2", "limit at 4", "out of memory"],
)
def test_the_smallest_batch_near_the_best_throughput(seconds_of, expected):
    assert find_batch_limit(seconds_of) == expected


def test_trying_ends_where_larger_batches_bring_nothing():
    tried = []

    def seconds_of(rows: int) -> float:
        tried.append(rows)
        return float(rows)

    find_batch_limit(seconds_of, largest=64)
    assert tried == [1, 2]


def test_a_measurement_is_kept_and_another_size_is_measured_again(flux, tmp_path):
    family = family_of(flux.transformer)
    engine, calls = make_engine("torch", family), []

    class Counting:
        name = "torch"

        def run(self, inputs, out=None):
            calls.append(inputs["hidden_states"].shape)
            return engine.run(inputs, out)

    axes = family.axis_sizes(16, 8)
    rows = calibrated_rows(Counting(), family, axes, 1, tmp_path)
    assert rows in (1, 2, 4, 8)
    assert {shape[0] for shape in calls} >= {1, 2}
    assert {shape[1] for shape in calls} == {16}
    (path,) = (tmp_path / "batch-limits").iterdir()
    assert json.loads(path.read_text())["rows"] == rows
    before = len(calls)
    assert calibrated_rows(Counting(), family, axes, 1, tmp_path) == rows
    assert len(calls) == before
    calibrated_rows(Counting(), family, family.axis_sizes(32, 8), 1, tmp_path)
    assert len(calls) > before
    path.write_text("rubbish")
    assert calibrated_rows(Counting(), family, axes, 1, tmp_path) in (1, 2, 4, 8)
