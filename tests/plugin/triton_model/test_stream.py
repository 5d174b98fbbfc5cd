"""The stream model in a pretended Triton: what it answers, whatever happens."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plugin.engines.base import Engine
from plugin.engines.parallel.processes import ProcessesLost
from plugin.families.base import BlockInputs
from plugin.tensors import (
    CANCEL_PARAMETER,
    ERROR_REPORT_PARAMETER,
    HEARTBEAT_PARAMETER,
    KEY_PARAMETER,
    PING_PARAMETER,
    QUIET_PARAMETER,
    TRACE_PARAMETER,
)
from plugin.triton_model import answers, job
from tests.support.paths import ROOT
from tests.support.pretend_triton import Client, Logger, MetricFamily, Request, Triton
from tests.support.stream_models import (
    FIELDS,
    Gate,
    arrays,
    error_of,
    error_of_last,
    outcomes,
    report_of,
)
from tests.support.waiting import wait_for


@pytest.fixture
def gated(load_stream: Callable[..., Any]) -> tuple[Any, Gate]:
    """A stream model with two slots, and its engine's gate."""
    model = load_stream(engine=Gate)
    gate = model.host.engines["transformer"]
    yield model, gate
    gate.open.set()


def test_a_stream_sends_steps_then_the_picture_of_the_plain_pipeline_then_the_flag_alone(triton, load_stream, flux):
    load_stream()
    client = triton.request("tiny_stream", FIELDS | {"cache_interval": 1})
    received = []
    while not received or not received[-1][1]:
        received.append(client.responses.get(timeout=30))
    assert received[-1] == (None, True), "clients that ask for an empty final response drop what comes with the flag"
    assert not any(final for _, final in received[:-1])
    steps = [int(arrays(response)["step"][0]) for response, _ in received[:-1]]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    last = arrays(received[-2][0])
    picture = flux(
        "a cat",
        height=32,
        width=32,
        num_inference_steps=6,
        guidance_scale=3.5,
        max_sequence_length=16,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
    ).images
    assert np.array_equal(last["image"], (picture * 255).round().astype(np.uint8))
    report = report_of(received[-2][0])
    assert (report["full_steps"], report["engine_calls"], report["seed"]) == ([*range(6)], 6, 7)


def test_b64_json_is_the_picture_as_a_png_and_image_is_empty(triton, load_stream):
    import base64

    load_stream()
    raw, encoded = (
        arrays(triton.request("tiny_stream", FIELDS | {"response_format": form}).all()[-1])
        for form in ("raw", "b64_json")
    )
    assert encoded["image"].size == 0
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded["b64_json"][0]))))
    assert np.array_equal(decoded, raw["image"][0])


def test_previews_come_where_they_are_asked_for(triton, load_stream):
    load_stream(preview_interval="2")
    fields = FIELDS | {"num_inference_steps": 8}
    assert all(arrays(each)["preview"].size == 0 for each in triton.request("tiny_stream", fields).all())
    shown = [arrays(each)["preview"].shape for each in triton.request("tiny_stream", fields | {"preview": True}).all()]
    assert (32, 32, 3) in shown


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt is missing"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": b"\xff"}, "prompt is invalid at byte 0"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps is 0, must be from 1 to"),
        ({"prompt": "a", "num_inference_steps": -1}, "num_inference_steps is -1, must be from 1 to"),
        ({"prompt": "a", "num_inference_steps": 10_000}, "num_inference_steps is 10000, must be from 1 to"),
        ({"prompt": "a" * 1_000_000}, "prompt is 1000000 bytes long, must be at most 8192 bytes"),
        ({"prompt": "a", "cache_interval": 0}, "cache_interval is 0, must be an integer from 1 to 1000"),
        ({"prompt": "a", "cache_order": 9}, "cache_order is 9, must be an integer from 0 to 8"),
        ({"prompt": "a", "height": 0}, "height is 0, must be a multiple of 16"),
        ({"prompt": "a", "width": 1_000_000}, "width is 1000000, must be a multiple of 16"),
        ({"prompt": "a", "height": 40}, "height is 40, must be a multiple of 16"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"prompt": "a", "cache_order": -1}, "cache_order is -1"),
        ({"prompt": "a", "cache_predictor": "oracle"}, "cache_predictor is 'oracle'"),
        ({"prompt": "a", "response_format": "gif"}, "response_format is 'gif'"),
        ({"prompt": "a", "class_label": 1}, "class_label is 1"),
        ({"prompt": "a", "seed": np.array([1, 2])}, r"seed has shape [2], must be [1]"),
        ({"prompt": np.array([b"a", b"b"], dtype=object)}, "prompt has shape [2], must be [1]"),
        ({"prompt": "a", "height": 2048, "width": 2048, "cache_order": 8}, "the memory_budget_mib of this model"),
    ],
)
def test_a_bad_field_is_answered_at_once_and_counted(triton, load_stream, fields, message):
    model = load_stream()
    code, text = error_of(triton.request("tiny_stream", fields))
    assert code == "INVALID_ARG"
    assert message in text
    wait_for(lambda: outcomes() == {"invalid": 1})
    assert not model.answers.jobs
    (response,) = triton.request("tiny_stream", fields, {ERROR_REPORT_PARAMETER: True}).all()
    error = report_of(response)["error"]
    assert (error["code"], message in error["message"]) == ("INVALID_ARG", True)
    assert len(triton.request("tiny_stream", FIELDS).all()) >= 1, "and the next one is served"


def test_a_full_queue_refuses_with_when_to_try_again(triton, gated):
    model, gate = gated
    taken = [triton.request("tiny_stream", FIELDS | {"seed": seed}) for seed in range(6)]  # 2 slots, 4 places
    wait_for(lambda: (model.admission.in_flight, model.admission.waiting) == (2, 4))
    code, text = error_of(triton.request("tiny_stream", FIELDS))
    assert code == "UNAVAILABLE"
    assert text.startswith("2 requests are in flight and 4 wait")
    gate.open.set()
    assert all(report_of(client.all()[-1])["num_steps"] == 6 for client in taken)
    wait_for(lambda: outcomes() == {"ok": 6, "unavailable": 1})
    assert (model.admission.in_flight, model.admission.held_bytes) == (0, 0)


@pytest.mark.parametrize("where", ["running", "queued"])
def test_a_cancel_ends_a_request_at_its_next_step_or_in_the_queue(triton, gated, where):
    model, gate = gated
    running = [triton.request("tiny_stream", FIELDS)]
    assert gate.entered.acquire(timeout=30)
    running.append(triton.request("tiny_stream", FIELDS))
    client = running[0] if where == "running" else triton.request("tiny_stream", FIELDS)
    client.cancelled = True
    if where == "running":
        gate.open.set()
    code, text = error_of_last(client)
    assert code == "CANCELLED"
    assert text.startswith("cancelled after" if where == "running" else "cancelled before it began")
    gate.open.set()
    for each in {*running} - {client}:
        each.all()
    wait_for(lambda: outcomes().get("cancelled") == 1)
    wait_for(lambda: model.admission.held_bytes == 0)


def test_a_plain_call_cancels_by_its_key_and_no_other_request(triton, gated):
    _, gate = gated
    quiet = {QUIET_PARAMETER: True, ERROR_REPORT_PARAMETER: True}
    one, other = (triton.request("tiny_stream", FIELDS, quiet | {KEY_PARAMETER: key}) for key in ("one", "other"))
    triton.request("tiny_stream", parameters={CANCEL_PARAMETER: "one"}).all()
    gate.open.set()
    assert report_of(one.all()[-1])["error"]["code"] == "CANCELLED"
    assert report_of(other.all()[-1])["num_steps"] == 6


def test_a_quiet_request_gets_heartbeats_with_the_process_in_place_of_progress(triton, gated):
    import os

    _, gate = gated
    client = triton.request("tiny_stream", FIELDS, {QUIET_PARAMETER: True})
    beats = [client.responses.get(timeout=30)[0] for _ in range(4)]
    assert {json.dumps(report_of(beat)) for beat in beats} == {json.dumps({"pid": os.getpid()})}
    gate.open.set()
    assert report_of(client.all()[-1])["num_steps"] == 6


def test_a_deadline_ends_a_request_and_says_where_it_was(triton, gated):
    _, gate = gated
    client = triton.request("tiny_stream", FIELDS | {"deadline_ms": 1000})
    assert gate.entered.acquire(timeout=30)
    time.sleep(1.0)
    gate.open.set()
    code, text = error_of_last(client)
    assert (code, text) == ("CANCELLED", "DEADLINE: deadline_ms of 1000 passed after 1 of 6 steps")
    wait_for(lambda: outcomes() == {"deadline": 1})


def test_an_engine_that_breaks_ends_its_requests_and_none_after_them(triton, gated):
    model, gate = gated
    gate.breaks = True
    gate.open.set()
    code, text = error_of_last(triton.request("tiny_stream", FIELDS))
    assert (code, text) == ("INTERNAL", "RuntimeError: the engine broke on purpose")
    assert any("the engine broke on purpose" in line for line in Logger.lines), "the log has the traceback"
    gate.breaks = False
    assert report_of(triton.request("tiny_stream", FIELDS).all()[-1])["num_steps"] == 6
    wait_for(lambda: outcomes() == {"error": 1, "ok": 1})
    assert model.admission.held_bytes == 0


def test_a_response_that_triton_does_not_take_ends_that_request_alone(triton, gated):
    model, gate = gated
    broken, good = triton.request("tiny_stream", FIELDS, client=Client(breaks=True)), None
    assert gate.entered.acquire(timeout=30)
    good = triton.request("tiny_stream", FIELDS)
    gate.open.set()
    assert report_of(good.all()[-1])["num_steps"] == 6
    wait_for(lambda: not model.answers.jobs)
    assert broken.responses.empty()
    assert model.answers.failure is None


def test_a_broken_response_thread_takes_the_model_out_of_service_with_every_request_answered(triton, load_stream):
    model = load_stream(engine=Gate)
    gate = model.host.engines["transformer"]
    send = model.answers._send

    def break_for_seed_666(job: Any) -> None:
        if job.request.seed == 666:
            raise RuntimeError("the response thread broke on purpose")
        send(job)

    model.answers._send = break_for_seed_666
    other = triton.request("tiny_stream", FIELDS)
    assert gate.entered.acquire(timeout=30)
    bad = triton.request("tiny_stream", FIELDS | {"seed": 666}, {QUIET_PARAMETER: True})  # its first heartbeat breaks
    expected = "the model failed: RuntimeError: the response thread broke on purpose"
    assert error_of_last(bad) == ("UNAVAILABLE", expected)
    gate.open.set()
    assert error_of_last(other) == ("UNAVAILABLE", expected)
    assert error_of(triton.request("tiny_stream", FIELDS)) == ("UNAVAILABLE", expected)
    assert error_of(triton.request("tiny_stream", parameters={PING_PARAMETER: True}))[0] == "UNAVAILABLE"
    assert "unload tiny_stream" in Logger.lines


def test_a_request_that_is_stuck_fails_the_model_and_answers_all(triton, load_stream):
    model = load_stream(engine=Gate, stuck_after_s="0.3")
    gate = model.host.engines["transformer"]
    clients = [triton.request("tiny_stream", FIELDS) for _ in range(3)]
    expected = "the model failed: a request has been at one operation for more than 0.3 s"
    assert [error_of_last(client) for client in clients] == [("UNAVAILABLE", expected)] * 3
    assert model.answers.stuck
    gate.open.set()


class Lost:
    """An engine that is lost with its first call, as one whose other process has ended."""

    name = "lost"

    def __init__(self, engine: Engine) -> None:
        self.failure: str | None = None

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        self.failure = "the other process has ended"
        raise ProcessesLost(self.failure)


def test_an_engine_that_is_lost_fails_the_model(triton, load_stream):
    """Its requests are answered, and pings refused: `serve` loads the model again."""
    model = load_stream(engine=Lost)
    first = triton.request("tiny_stream", FIELDS)
    assert error_of_last(first) == ("UNAVAILABLE", "the other process has ended")
    wait_for(lambda: model.answers.failure is not None, "the model has failed")
    expected = ("UNAVAILABLE", "the model failed: the other process has ended")
    assert error_of(triton.request("tiny_stream", FIELDS)) == expected
    assert error_of(triton.request("tiny_stream", parameters={PING_PARAMETER: True})) == expected


def test_a_ping_is_answered_without_work(triton, gated):
    assert triton.request("tiny_stream", parameters={PING_PARAMETER: True}).all() == []


def test_unloading_answers_what_is_queued_and_what_runs_and_ends_the_process(triton, gated):
    _, gate = gated
    clients = [triton.request("tiny_stream", FIELDS) for _ in range(4)]
    assert gate.entered.acquire(timeout=30)
    threading.Timer(0.2, gate.open.set).start()
    triton.unload("tiny_stream")
    assert [error_of_last(client)[0] for client in clients] == ["CANCELLED"] * 4
    assert triton.exits == [0]


def test_what_steps_did_is_in_the_metrics(triton, load_stream):
    load_stream()
    report = report_of(triton.request("tiny_stream", FIELDS | {"cache_interval": 3, "cache_warmup_steps": 1}).all()[-1])
    wait_for(lambda: outcomes() == {"ok": 1})
    steps = {m.labels["kind"]: m.value for m in MetricFamily.families["taylorseer_steps_total"].metrics}
    assert steps == {"full": len(report["full_steps"]), "forecast": 6 - len(report["full_steps"])}
    (batches,) = MetricFamily.families["taylorseer_engine_batch_size"].metrics
    assert batches.observed == [1] * report["engine_calls"]
    (cache,) = MetricFamily.families["taylorseer_cache_bytes"].metrics
    wait_for(lambda: cache.value == 0)
    assert {m.labels["model"] for m in MetricFamily.families["taylorseer_steps_total"].metrics} == {"tiny"}


def test_requests_of_different_threads_get_their_own_pictures(triton: Triton, load_stream):
    load_stream(max_in_flight="4", max_waiting="16")
    alone = [arrays(triton.request("tiny_stream", FIELDS | {"seed": seed}).all()[-1])["image"] for seed in range(8)]
    clients = [triton.request("tiny_stream", FIELDS | {"seed": seed}) for seed in range(8)]
    together = [arrays(client.all()[-1])["image"] for client in clients]
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_trace_that_a_client_made_up_changes_nothing(triton, load_stream, monkeypatch):
    model = load_stream()
    seen = []
    monkeypatch.setattr(model.answers._reporting, "_trace", lambda context, *_: seen.append(context))
    headers = json.dumps({"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"})
    for context in (headers, "no json", "[1]", json.dumps({"traceparent": 5}), 7):
        assert report_of(triton.request("tiny_stream", FIELDS, {TRACE_PARAMETER: context}).all()[-1])["num_steps"] == 6
    wait_for(lambda: len(seen) == 5)
    assert seen == [headers, None, None, None, None]


@pytest.mark.parametrize("model", ["tiny", "tiny_stream"])
def test_parameters_that_cannot_be_read_end_that_request_alone(triton, load_pair, monkeypatch, model):
    load_pair()
    with monkeypatch.context() as patch:
        patch.setattr(Request, "parameters", lambda self: b"\xff".decode())
        code, text = error_of(triton.request(model, FIELDS))
    assert code == "INVALID_ARG"
    assert text == "a parameter of the request has bytes that are not UTF-8, must be UTF-8 text"
    assert report_of(triton.request(model, FIELDS).all()[-1])["num_steps"] == 6


def test_an_error_and_the_final_flag_are_two_responses(triton, load_stream):
    load_stream()
    client = triton.request("tiny_stream", {"seed": 1})
    first, second = client.responses.get(timeout=30), client.responses.get(timeout=30)
    assert first[0].has_error()
    assert not first[1]
    assert second == (None, True)


def test_a_stream_that_wants_heartbeats_hears_at_once_and_while_it_waits(triton, gated, monkeypatch):
    monkeypatch.setattr(answers, "_SIGN_OF_LIFE_S", 0.2)
    _, gate = gated
    blocking = [triton.request("tiny_stream", FIELDS) for _ in range(2)]
    waiting = triton.request("tiny_stream", FIELDS, {HEARTBEAT_PARAMETER: True})
    heard = [waiting.responses.get(timeout=5) for _ in range(3)]
    for response, final in heard:
        assert not final
        got = arrays(response)
        assert (got["step"][0], got["num_steps"][0], got["image"].size, got["report"][0]) == (0, 6, 0, b"")
    assert blocking[0].responses.empty(), "who has not asked hears nothing"
    gate.open.set()
    assert report_of(waiting.all()[-1])["num_steps"] == 6
    for each in blocking:
        assert report_of(each.all()[-1])["num_steps"] == 6


def test_a_queued_stream_that_wants_heartbeats_hears_of_its_place(triton, gated, monkeypatch):
    """The longest wait for a sign of life stays: what comes is the news of another place."""
    monkeypatch.setattr(job, "_BETWEEN_POSITIONS_S", 0.0)
    _, gate = gated
    blocking = [triton.request("tiny_stream", FIELDS) for _ in range(2)]
    queued = [triton.request("tiny_stream", FIELDS, {HEARTBEAT_PARAMETER: True}) for _ in range(2)]

    def position(request: Any) -> int:
        return arrays(request.responses.get(timeout=5)[0])["queue_position"][0]

    assert [position(each) for each in queued] == [1, 2]
    queued[0].cancelled = True
    assert position(queued[1]) == 1
    gate.open.set()
    assert position(queued[1]) == 0
    assert report_of(queued[1].all()[-1])["num_steps"] == 6
    for each in blocking:
        assert {arrays(response)["queue_position"][0] for response in each.all()} == {0}


@pytest.mark.parametrize("model", ["tiny", "tiny_stream"])
def test_the_output_that_is_asked_for_decides_the_format(triton, load_pair, model):
    load_pair()
    last = arrays(triton.request(model, FIELDS, outputs=["b64_json", "report"]).all()[-1])
    assert base64.b64decode(last["b64_json"][0]).startswith(b"\x89PNG")
    last = arrays(triton.request(model, FIELDS, outputs=["image"]).all()[-1])
    assert last["image"].shape == (1, 32, 32, 3)
    both = arrays(
        triton.request(model, FIELDS | {"response_format": "b64_json"}, outputs=["image", "b64_json"]).all()[-1]
    )
    assert both["b64_json"][0]
    for name, other in (("image", "b64_json"), ("b64_json", "raw")):
        code, text = error_of_last(triton.request(model, FIELDS | {"response_format": other}, outputs=[name]))
        right = {"image": "raw"}.get(name, name)
        assert code == "INVALID_ARG"
        assert text == (f"response_format is '{other}', must be '{right}' or left out: the output {name} is asked for")


@pytest.mark.parametrize("model", ["tiny", "tiny_stream"])
def test_names_that_nobody_reads_are_in_the_warnings(triton, load_pair, model):
    load_pair()
    parameters = {
        "steps": 20,
        "cache_intervall": 1,
        "zzz": "x",
        "timeout": 5,
        "triton_enable_empty_final_response": True,
    }
    report = report_of(triton.request(model, FIELDS, parameters).all()[-1])
    assert report["warnings"][:3] == [
        "'steps' is no input of this model and was ignored: did you mean num_inference_steps?",
        "'cache_intervall' is no input of this model and was ignored: did you mean cache_interval?",
        "'zzz' is no input of this model and was ignored",
    ]
    many = {"x" * 500 + str(i): i for i in range(500)}
    warnings = report_of(triton.request(model, FIELDS, many).all()[-1])["warnings"]
    assert len([each for each in warnings if "is no input" in each]) == 8
    assert all(len(each) < 200 for each in warnings[:8])
    assert not [each for each in report_of(triton.request(model, FIELDS).all()[-1])["warnings"] if "no input" in each]


def test_the_tensors_are_declared_without_loading_torch():
    """Triton does that in a process of its own each time it loads a model."""
    script = """
import sys
from tests.support import pretend_triton
from plugin.triton_model import BlockStackModel, FrontModel, StreamModel
assert StreamModel.auto_complete_config
heavy = {"torch", "diffusers", "transformers", "onnxruntime"} & {*sys.modules}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)
