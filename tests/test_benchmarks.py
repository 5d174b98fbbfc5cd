"""The GPU benchmark runs on a CPU with tiny transformers: same code, and it says what the machine lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_whole_runs_are_measured_and_a_second_call_goes_on_with_what_is_left(tmp_path: Path):
    def runs(*arguments: object) -> dict[str, Any]:
        done = gpu_benchmark(
            *("--device", "cpu", "--tiny", "--part", "runs", "--model", "flux_dev"),
            *("--turns", 2, "--output", tmp_path, *arguments),
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "gpu_runs_flux_dev.json").read_text())

    none = runs("--minutes", 0)
    assert not none["cases"]
    assert none["left"][0] == "off, batch 1"
    result = runs()
    assert not result["left"]
    assert list(result["cases"]) == none["left"]
    off, on = result["cases"]["off, batch 1"], result["cases"]["N5 O2, batch 1"]
    assert off["full_steps"] == result["num_steps"] == 10
    assert off["forecast_step_s"] is None
    assert len(on["run_s_all"]) == 2
    assert on["full_steps"] == 4  # 3 of warm-up, then one after 4 forecasts, and 2 forecasts more
    assert on["speed_up"] == off["run_s"] / on["run_s"]
    assert on["skip_efficiency"] == on["speed_up"] / 2.5
    assert on["forecast_step_s"] < on["full_step_s"]
    assert on["cache_bytes"] > off["cache_bytes"] >= 0
    assert result["cases"]["knee"]["rows"] >= 1
    assert result["cases"]["16 in flight"]["pictures"] == 32
    assert runs()["cases"] == result["cases"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu_is_one_sentence(tmp_path: Path):
    done = gpu_benchmark("--output", tmp_path)
    assert done.returncode == 2
    assert "torch finds no GPU here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
