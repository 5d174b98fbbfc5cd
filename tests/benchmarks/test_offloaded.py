"""The benchmark of idle components and idle models: how it compares, without its server and its processes."""

from __future__ import annotations

import pytest

from benchmarks import offloaded


def test_an_idle_encoder_and_one_in_memory_make_pictures_by_turns():
    found = offloaded.latency(1)
    assert set(found) == {"new_prompt", "known_prompt"}
    for kind in found.values():
        for name in ("encode_s", "total_s"):
            ratio = kind[f"idle_{name}"] / kind[f"in_memory_{name}"]
            assert kind[f"idle_over_in_memory_{name}"] == pytest.approx(ratio)
    assert found["known_prompt"]["idle_encode_s"] < found["new_prompt"]["idle_encode_s"], "a known prompt is kept"
