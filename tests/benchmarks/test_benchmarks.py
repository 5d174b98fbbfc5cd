"""Benchmarks in short form: the GPU's on a CPU with tiny transformers, the others with few turns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bandwidth, forecast_profile, huge_pages
from benchmarks.environment import ROOT


def gpu_benchmark(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("model", [pytest.param("dit_xl_2_256", marks=pytest.mark.compiles), "hunyuan_video"])
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
    peers = {name: each["full_steps"] for name, each in result["cases"].items() if name.startswith(("diff", "cache"))}
    assert peers == {"diffusers": 10, "diffusers, 4 steps": 4, "cache-dit": 4} | dict.fromkeys(
        ("diffusers, its hook", "diffusers, its hook, lite"), 4
    )
    plain, hook = (result["cases"][name] for name in ("diffusers", "diffusers, its hook"))
    assert hook["speed_up"] == plain["run_s"] / hook["run_s"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu_is_one_sentence(tmp_path: Path):
    done = gpu_benchmark("--output", tmp_path)
    assert done.returncode == 2
    assert "torch finds no GPU here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_forecasts_are_measured_beside_copies_of_as_many_bytes(tmp_path: Path):
    path = tmp_path / "bandwidth.json"
    bandwidth.main(["--bytes", "6000", "--bytes", "90000", "--turns", "2", "--output", str(path)])
    result = json.loads(path.read_text())
    assert result["device"] == "cpu"
    rows = result["forecasts"]
    cases = {(row["anchor_bytes"], row["dtype"], row["order"]) for row in rows}
    assert cases == {(size, dtype, o) for size in (6000, 90000) for dtype in ("float32", "bfloat16") for o in (1, 2, 4)}
    for row in rows:
        moved = (row["order"] + 2) * row["anchor_bytes"]  # order + 1 anchors are read, one feature is written
        assert row["forecast_s"] * row["forecast_gb_per_s"] * 1e9 == pytest.approx(moved)
        assert row["copy_s"] * row["copy_gb_per_s"] * 1e9 == pytest.approx(moved)
        assert row["of_copy"] > 0


def test_large_pages_are_measured_in_processes_with_and_without_them(tmp_path: Path):
    path = tmp_path / "huge_pages.json"
    huge_pages.main(["--turns", "1", "--pixels", "16", "--bytes", "6000", "--output", str(path)])
    result = json.loads(path.read_text())
    for call in ("decode_s", "forecast_into_new_memory_s"):
        assert result["huge_over_small"][call] == result["huge_pages"][call] / result["small_pages"][call] > 0


def test_a_forecast_step_is_measured_in_parts_now_and_at_another_commit(tmp_path: Path):
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("is not a clone: there is no other commit to measure")
    path = tmp_path / "profile.json"
    forecast_profile.main(["--against", "HEAD", "--turns", "1", "--pictures", "1", "--output", str(path)])
    result = json.loads(path.read_text())
    assert result["cache"]["order"] == 1
    assert set(result["microseconds"]) == {"HEAD", "now"}
    for parts in result["microseconds"].values():
        whole = parts.pop("whole step")
        assert len(parts) == 6
        assert sum(parts.values()) == pytest.approx(whole)
        assert parts["forecast"] > 0
    assert len(result["microseconds_alone"]) == 4
    assert all(value > 0 for value in result["microseconds_alone"].values())
