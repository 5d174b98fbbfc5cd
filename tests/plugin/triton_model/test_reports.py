"""What reports and metrics of a stream model say of the work that was done, in a pretended Triton."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plugin.triton_model import answers
from taylorseer import full_steps
from tests.support.pretend_triton import MetricFamily
from tests.support.stream_models import FIELDS, arrays, outcomes, report_of
from tests.support.waiting import wait_for


def ask(triton: Any, **fields: Any) -> dict[str, Any]:
    return report_of(triton.request("tiny_stream", FIELDS | fields).all()[-1])


def counts(name: str, label: str) -> dict[str, int]:
    """Of a metric, by one of its labels."""
    return {each.labels[label]: int(each.value) for each in MetricFamily.families[name].metrics}


def test_the_parts_of_the_time_add_up(triton, load_stream):
    load_stream()
    report = ask(triton)
    parts = sum(report[f"{name}_s"] for name in ("queue", "encode", "denoise", "decode"))
    assert parts == pytest.approx(report["total_s"], abs=1e-6)
    assert report["engine"] == "torch"


@pytest.mark.parametrize(("steps", "interval", "warmup"), [(50, 5, 3), (50, 6, 3), (28, 4, 1), (10, 1, 0), (7, 3, 2)])
def test_engine_calls_equal_full_steps(triton, load_stream, steps, interval, warmup):
    load_stream()
    report = ask(triton, num_inference_steps=steps, cache_interval=interval, cache_warmup_steps=warmup)
    assert report["full_steps"] == list(full_steps(steps, interval, warmup))
    assert report["engine_calls"] == len(report["full_steps"])


def test_two_guidance_branches_take_two_engine_calls_at_each_full_step(triton, load_stream):
    load_stream()
    report = ask(triton, negative_prompt="a dog", num_inference_steps=12)
    assert report["engine_calls"] == 2 * len(report["full_steps"])


def test_cache_bytes_are_those_of_the_anchors(triton, load_stream):
    load_stream()
    assert (
        ask(triton, cache_interval=5, cache_order=2)["cache_bytes"] == 3 * 64 * 32 * 4
    )  # slots, tokens, width, float32
    assert ask(triton, cache_interval=1, cache_order=2)["cache_bytes"] == 0


def test_a_missing_seed_is_drawn_and_reported(triton, load_stream):
    load_stream()
    fields = {name: value for name, value in FIELDS.items() if name != "seed"}
    first, second = (triton.request("tiny_stream", fields).all()[-1] for _ in range(2))
    assert report_of(first)["seed"] != report_of(second)["seed"]
    again = triton.request("tiny_stream", fields | {"seed": report_of(first)["seed"]}).all()[-1]
    assert np.array_equal(arrays(first)["image"], arrays(again)["image"])


def test_a_prompt_with_another_seed_is_not_encoded_again(triton, load_stream):
    load_stream()
    ask(triton, prompt="a prompt that comes first")
    wait_for(lambda: outcomes() == {"ok": 1})
    before = counts("taylorseer_texts_total", "result")
    for seed in range(3):
        ask(triton, prompt="a prompt that no other test has", seed=seed)
    wait_for(lambda: outcomes() == {"ok": 4})
    after = counts("taylorseer_texts_total", "result")
    assert {name: after[name] - before[name] for name in after} == {"hit": 2, "miss": 1}


def test_a_request_is_in_flight_from_its_answer_until_it_is_counted(triton, load_stream, monkeypatch):
    """A scrape after the answer that finds nothing in flight finds the request counted."""
    model = load_stream()
    wait_for(lambda: "taylorseer_request_seconds" in MetricFamily.families)  # made last
    (gauge,) = MetricFamily.families["taylorseer_requests_in_flight"].metrics
    count, seen = model.answers._reporting.ended, []

    def ended(job: Any) -> None:
        seen.append((gauge.value, outcomes()))
        count(job)

    monkeypatch.setattr(model.answers._reporting, "ended", ended)
    monkeypatch.setattr(answers, "_HEARTBEAT_S", 60.0)
    ask(triton)
    wait_for(lambda: (gauge.value, outcomes()) == (0, {"ok": 1}))
    assert seen == [(1, {})]


def test_metrics_count_what_the_reports_say(triton, load_stream):
    load_stream()
    reports = [ask(triton, num_inference_steps=20, cache_interval=interval) for interval in (1, 5)]
    wait_for(lambda: outcomes() == {"ok": 2})
    full = sum(len(report["full_steps"]) for report in reports)
    assert counts("taylorseer_steps_total", "kind") == {"full": full, "forecast": 40 - full}
    seconds = {
        each.labels["kind"]: len(each.observed) for each in MetricFamily.families["taylorseer_step_seconds"].metrics
    }
    assert seconds == {"full": full, "forecast": 40 - full}
    (batches,) = MetricFamily.families["taylorseer_engine_batch_size"].metrics
    assert batches.observed == [1] * full
