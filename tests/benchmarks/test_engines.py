"""The benchmark of engines, in short form and without the one that compiles for half a minute."""

from __future__ import annotations

import json

import pytest

from benchmarks import engines


@pytest.mark.compiles
def test_engines_take_turns_and_give_what_torch_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "ENGINES", ("torch", "onnxruntime"))
    monkeypatch.setattr(engines, "_WARM_UPS", 1)
    path = tmp_path / "engines.json"
    engines.main(["--turns", "3", "--output", str(path)])
    result = json.loads(path.read_text())
    assert [(row["batch"], row["engine"]) for row in result["full_steps"]] == [
        (batch, engine) for batch in (1, 4) for engine in ("torch", "onnxruntime")
    ]
    for row in result["full_steps"]:
        assert row["relative_distance"] <= 1e-5, "float32, other summation orders"
        assert (row["of_torch"] == 1.0) == (row["engine"] == "torch")
