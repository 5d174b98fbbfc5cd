"""Commands that hand their options on: `bench`, `build`, `evaluate` and `plan`."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

import plugin.building.evaluate
from plugin.building.evaluate import EvaluateRequest
from plugin.paths import REPOSITORY
from tests.support.commands import run


def test_bench_becomes_the_benchmark_with_the_same_interpreter(monkeypatch):
    called: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *arguments: called.append(arguments))
    assert run("bench", "--pictures", 3, "--output", "here.json")[0] == 0
    command = [sys.executable, "-m", "benchmarks.cpu", "--pictures", "3", "--steps", "50", "--output", "here.json"]
    assert called == [(sys.executable, command)]


def test_evaluate_hands_its_options_on_and_writes_the_result(tmp_path, monkeypatch):
    asked: list[EvaluateRequest] = []

    def evaluate(request: EvaluateRequest, on_progress: Any) -> dict[str, Any]:
        asked.append(request)
        on_progress(1, 1)
        return {"model": "emoji", "pictures": 2, "num_steps": 9, "engine": "torch", "rows": [{"way": "uncached"}]}

    monkeypatch.setattr(plugin.building.evaluate, "evaluate", evaluate)
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    options = ["--pictures", 2, "--preset", "paper", "--preset", "default", "--score", "fid", "--reference", tmp_path]
    code, output = run("evaluate", "emoji", "--prompts", tmp_path / "prompts.txt", *options, "--output", tmp_path)
    assert code == 0, output
    assert f"pictures and evaluate.json: {tmp_path}/" in output
    assert json.loads((tmp_path / "evaluate.json").read_text())["rows"] == [{"way": "uncached"}]
    fields = dict.fromkeys(("num_inference_steps", "guidance_scale", "height", "width", "num_frames"))
    assert asked == [
        EvaluateRequest(
            "emoji",
            REPOSITORY,
            ("a cat", "a dog"),
            2,
            ("paper", "default"),
            ("fid",),
            tmp_path,
            tmp_path,
            fields,
        )
    ]


def test_evaluate_errors_are_one_sentence(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "empty.txt").touch()
    for file, options, sentence in (
        ("prompts.txt", ["--score", "fid"], "error: reference is missing, must be a folder of real pictures"),
        ("prompts.txt", ["--preset", "fast"], "error: preset is 'fast', must be one of: default"),
        ("empty.txt", [], "which is empty: must hold a prompt a line"),
        ("nowhere.txt", [], "error: [Errno 2] No such file or directory"),
    ):
        code, output = run("evaluate", "emoji", "--prompts", tmp_path / file, *options, "--output", tmp_path / "out")
        assert code == 1, output
        assert sentence in output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--batch", "1,2"], "error: batch is '1,2', must be MIN,OPT,MAX"),
        (["--batch", "0,1,2"], "error: batch is '0', must be an integer of at least 1"),
        (["--size", "64"], "error: size is '64', must be HEIGHTxWIDTH in pixels"),
        (["--num-frames", "x"], "error: num-frames is 'x', must be an integer of at least 1"),
        (["--calibration-sizes", "8"], "error: calibration-sizes is '8', must be HEIGHTxWIDTH in pixels or"),
    ],
)
def test_build_refuses_what_it_cannot_read_before_it_loads_anything(options, sentence):
    code, output = run("build", "emoji", *options)
    assert code == 1
    assert sentence in output


def test_plan_says_what_a_request_costs():
    options = ["--interval", 5, "--order", 1, "--negative-prompt", "x", "--schedule", "interval"]
    code, output = run("plan", "emoji", *options)
    assert code == 0
    assert "emoji (FluxTransformer2DModel), height 64, width 64" in output
    assert "12 of 50: 0, 1, 2, 7, 12, 17" in output
    code, output = run("plan", "emoji", "--height", 7)
    assert code == 1
    assert "error: height is 7, must be a multiple of" in output
