"""The GPU benchmark runs on a CPU with tiny transformers: same code, and it says what the machine lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def gpu_benchmark(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("model", ["dit_xl_2_256", "hunyuan_video"])
def test_blocks_are_measured_and_held_to_torch(tmp_path: Path, model):
    ways = ["torch eager", "CUDA graph", "tensorrt"] + ["onnxruntime"] * (model == "dit_xl_2_256")
    chosen = [each for way in ways for each in ("--way", way)]
    done = gpu_benchmark(
        "--device", "cpu", "--tiny", "--part", "blocks", "--model", model, "--turns", 2, "--output", tmp_path, *chosen
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / f"gpu_blocks_{model}.json").read_text())
    assert result["tiny"] is True
    assert result["parameters_of_blocks"] > 1_000_000
    assert set(result["ways"]) == set(ways)
    assert result["ways"]["CUDA graph"] == {"absent": "RuntimeError: CUDA graphs need a GPU"}
    assert "absent" in result["ways"]["tensorrt"]
    for way in {"torch eager", "onnxruntime"} & set(ways):
        measured = result["ways"][way]
        assert len(measured["ms_all"]) == 2
        assert measured["distance_holds"]
        assert measured["relative_distance"] <= measured["distance_allowed"]
    assert 0 < result["forecast_over_full"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu_is_one_sentence(tmp_path: Path):
    done = gpu_benchmark("--output", tmp_path)
    assert done.returncode == 2
    assert "torch finds no GPU here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
