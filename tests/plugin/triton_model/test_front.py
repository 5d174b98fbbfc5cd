"""The plain model in a pretended Triton: any number of calls at once, and an end for every one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from plugin.tensors import PING_PARAMETER
from plugin.triton_model import front
from plugin.triton_model.front import is_alive
from tests.support.paths import ROOT
from tests.support.pretend_triton import Client
from tests.support.stream_models import FIELDS, Gate, arrays, error_of, outcomes, report_of
from tests.support.waiting import wait_for


@pytest.fixture
def held(load_pair):
    """A pair whose engine is held, and its gate."""
    stream = load_pair(engine=Gate, max_in_flight="4", max_waiting="64")
    gate = stream.host.engines["transformer"]
    yield stream, gate
    gate.open.set()


def test_a_plain_call_answers_once_with_what_its_stream_ends_with(triton, load_pair):
    load_pair()
    (plain,) = triton.request("tiny", FIELDS).all()
    last = triton.request("tiny_stream", FIELDS).all()[-1]
    assert {*arrays(plain)} == {"image", "report"}
    assert np.array_equal(arrays(plain)["image"], arrays(last)["image"])
    assert report_of(plain)["full_steps"] == report_of(last)["full_steps"]
    (encoded,) = triton.request("tiny", FIELDS | {"response_format": "b64_json"}).all()
    assert {*arrays(encoded)} == {"b64_json", "report"}


def test_errors_keep_their_code_and_message(triton, load_pair):
    load_pair()
    code, message = error_of(triton.request("tiny", {"prompt": "a", "num_inference_steps": 0}))
    assert code == "INVALID_ARG"
    assert message.startswith("num_inference_steps is 0, must be from 1 to")
    wait_for(lambda: outcomes() == {"invalid": 1})


def test_sixty_four_calls_at_once_are_each_served_by_one_process(triton, held):
    stream, gate = held
    clients = [triton.request("tiny", FIELDS | {"seed": seed}) for seed in range(64)]
    wait_for(lambda: stream.admission.in_flight + stream.admission.waiting == 64)
    gate.open.set()
    answers = [client.all() for client in clients]
    assert [len(each) for each in answers] == [1] * 64
    assert sorted(report_of(each[0])["seed"] for each in answers) == [*range(64)]
    assert len({arrays(each[0])["image"].tobytes() for each in answers}) == 64


def test_a_call_whose_client_has_gone_is_cancelled_and_no_other(triton, held):
    stream, gate = held
    gone, other = triton.request("tiny", FIELDS), triton.request("tiny", FIELDS)
    wait_for(lambda: stream.admission.in_flight == 2)
    gone.cancelled = True
    wait_for(lambda: sum(not job.cancelled for job in stream.answers.jobs) == 1)
    gate.open.set()
    assert error_of(gone)[0] == "CANCELLED"
    assert report_of(other.all()[0])["num_steps"] == 6


def test_a_stream_model_that_is_not_loaded_is_unavailable(triton, load_pair):
    load_pair()
    triton.unload("tiny_stream")
    assert error_of(triton.request("tiny", FIELDS)) == (
        "UNAVAILABLE",
        "Failed for execute the inference request. Model 'tiny_stream' is not ready.",
    )


@pytest.mark.parametrize("count", [3, 8])
def test_calls_in_flight_are_answered_when_the_process_of_the_stream_model_ends(triton, held, monkeypatch, count):
    stream, _ = held
    clients = [triton.request("tiny", FIELDS) for _ in range(count)]
    wait_for(lambda: stream.admission.in_flight + stream.admission.waiting == count)
    wait_for(lambda: all(call._pid for call in triton.models["tiny"]._calls), "every call has had a heartbeat")
    triton.lose_process("tiny_stream")
    monkeypatch.setattr(front, "is_alive", lambda pid: False)
    began = time.monotonic()
    errors = [error_of(client) for client in clients]
    assert time.monotonic() - began < 5
    expected = ("UNAVAILABLE", "the process of tiny_stream ended with this request in it: try again")
    assert errors == [expected] * count
    assert error_of(triton.request("tiny", FIELDS)) == ("UNAVAILABLE", "Stub process 'tiny_stream_0_0' is not healthy.")


def test_a_call_that_was_never_heard_from_is_answered_too(triton, load_pair, monkeypatch):
    load_pair()
    monkeypatch.setattr(front, "_UNHEARD_S", 1.2)
    triton.models["tiny_stream"].execute = lambda requests: [each.get_response_sender() for each in requests]
    code, message = error_of(triton.request("tiny", FIELDS))
    assert code == "UNAVAILABLE"
    assert message.startswith("tiny_stream has not been heard from for")


def test_a_slow_first_heartbeat_is_waited_for_while_the_process_lives(triton, load_pair, monkeypatch):
    stream = load_pair()
    assert report_of(triton.request("tiny", FIELDS).all()[0])["num_steps"] == 6  # the process is known now
    monkeypatch.setattr(front, "_UNHEARD_S", 1.2)
    execute = stream.execute

    def late(requests):
        time.sleep(2.0)
        execute(requests)

    stream.execute = late
    client = Client()
    threading.Thread(target=triton.request, args=("tiny", FIELDS), kwargs={"client": client}).start()
    assert report_of(client.all()[0])["num_steps"] == 6


def test_a_ping_is_answered_while_calls_wait(triton, held):
    stream, _ = held
    triton.request("tiny", FIELDS)
    wait_for(lambda: stream.admission.in_flight == 1)
    (pong,) = triton.request("tiny", parameters={PING_PARAMETER: True}).all()
    assert pong.output_tensors() == []


def test_threads_left_behind_do_not_hold_up_the_end(triton, held, monkeypatch):
    client = triton.request("tiny", FIELDS)
    wait_for(lambda: all(call._pid for call in triton.models["tiny"]._calls), "the call has had a heartbeat")
    triton.lose_process("tiny_stream")
    monkeypatch.setattr(front, "is_alive", lambda pid: False)
    error_of(client)
    triton.unload("tiny")
    assert triton.exits == [0]


def test_the_plain_model_loads_no_torch():
    script = """
import sys
from tests.support import pretend_triton
from plugin.triton_model import FrontModel
heavy = {"torch", "diffusers", "transformers", "onnxruntime", "PIL", "tritonclient", "taylorseer"} & {*sys.modules}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_a_process_that_has_ended_is_not_alive_even_where_nothing_has_waited_for_it():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert is_alive(process.pid)
    assert is_alive(os.getpid())
    process.kill()
    wait_for(lambda: not is_alive(process.pid))  # a zombie
    process.wait()
    assert not is_alive(process.pid)
