"""A stream model that leaves memory while it is idle, in a pretended Triton: what it answers meanwhile, and later."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FluxPipeline

from plugin.denoising.host import PipelineHost
from plugin.engines.packer import PackSettings
from plugin.tensors import DESCRIBE_PARAMETER, ERROR_REPORT_PARAMETER, PING_PARAMETER, QUIET_PARAMETER
from plugin.triton_model.stream import StreamModel
from tests.support.pretend_triton import Logger, MetricFamily
from tests.support.stream_models import FIELDS, PARAMETERS, Gate, arrays, error_of, error_of_last, outcomes, report_of
from tests.support.waiting import wait_for

AFTER_S = 0.2


class Loads:
    """How a model is loaded: counts, and holds or breaks a load."""

    def __init__(self) -> None:
        self.count, self.entered, self.open = 0, threading.Semaphore(0), threading.Event()
        self.breaks = False
        self.engine: Callable[[Any], Any] | None = None
        self.open.set()

    def load(self, flux: FluxPipeline) -> PipelineHost:
        self.count += 1
        self.entered.release()
        assert self.open.wait(30)
        if self.breaks:
            raise OSError("the disk is gone on purpose")
        host = PipelineHost(flux, text_cache_bytes=2**20)
        if self.engine is not None:
            host.engines = {name: self.engine(each) for name, each in host.engines.items()}
        host.pack(PackSettings())
        return host


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def load(triton: Any, flux: FluxPipeline, loads: Loads, tmp_path: Path) -> Callable[..., StreamModel]:
    """Loads `tiny_stream`, which is unloaded after a fifth of a second."""

    class Model(StreamModel):
        def load_host(self) -> PipelineHost:
            return loads.load(flux)

    Logger.lines.clear()
    return lambda **parameters: triton.load(
        "tiny_stream", Model, tmp_path, PARAMETERS | {"unload_after_s": str(AFTER_S)} | parameters
    )


def gauge() -> float:
    (metric,) = MetricFamily.families["taylorseer_model_loaded"].metrics
    return metric.value


def picture(client: Any) -> np.ndarray:
    return arrays(client.all()[-1])["image"]


def unloaded(model: StreamModel) -> StreamModel:
    wait_for(lambda: model.host is None, "the model is unloaded")
    return model


def test_an_idle_model_is_unloaded_and_comes_back_for_a_request_with_the_same_bits(triton, load, loads):
    model = load()
    assert loads.count == 1
    expected = picture(triton.request("tiny_stream", FIELDS))
    host = weakref.ref(model.host)
    unloaded(model)
    gc.collect()
    wait_for(lambda: host() is None, "nothing refers to the host")
    wait_for(lambda: gauge() == 0)
    assert np.array_equal(picture(triton.request("tiny_stream", FIELDS)), expected)
    assert (loads.count, outcomes()) == (2, {"ok": 2})
    wait_for(lambda: gauge() == 1 or model.host is None)
    unloaded(model)
    assert [line for line in Logger.lines if "tiny_stream: no request for 0.2 s: unloaded in" in line]
    assert [line for line in Logger.lines if "tiny_stream: loaded again in" in line]


def test_a_model_without_the_parameter_stays(triton, load, loads):
    model = load(unload_after_s="0")
    picture(triton.request("tiny_stream", FIELDS))
    time.sleep(3 * AFTER_S)
    assert model.host is not None
    assert loads.count == 1


def test_pings_and_questions_are_answered_and_load_nothing(triton, load, loads):
    model = load()
    described = report_of(triton.request("tiny_stream", parameters={DESCRIBE_PARAMETER: True}).all()[-1])
    unloaded(model)
    assert triton.request("tiny_stream", parameters={PING_PARAMETER: True}).all() == []
    again = report_of(triton.request("tiny_stream", parameters={DESCRIBE_PARAMETER: True}).all()[-1])
    assert again == described
    assert error_of(triton.request("tiny_stream", FIELDS | {"height": 40}))[0] == "INVALID_ARG"
    assert (model.host, loads.count) == (None, 1)


def test_a_model_at_work_or_with_a_queue_stays(triton, load, loads):
    loads.engine = Gate
    model = load(max_in_flight="1")
    gate = model.host.engines["transformer"]
    clients = [triton.request("tiny_stream", FIELDS) for _ in range(2)]
    assert gate.entered.acquire(timeout=30)
    time.sleep(3 * AFTER_S)
    assert (model.host is not None, model.admission.waiting) == (True, 1)
    gate.open.set()
    assert np.array_equal(*map(picture, clients))
    assert loads.count == 1


def test_requests_that_come_while_it_loads_wait_and_it_is_loaded_once(triton, load, loads):
    model = load(max_in_flight="1", max_waiting="2")
    expected = picture(triton.request("tiny_stream", FIELDS))
    unloaded(model)
    loads.open.clear()
    clients = [triton.request("tiny_stream", FIELDS) for _ in range(3)]
    wait_for(lambda: loads.count == 2)
    assert error_of(triton.request("tiny_stream", FIELDS))[1].startswith("1 requests are in flight and 2 wait")
    quiet = [triton.request("tiny_stream", parameters={PING_PARAMETER: True}).all() for _ in range(2)]
    assert quiet == [[], []]
    loads.open.set()
    assert all(np.array_equal(picture(client), expected) for client in clients)
    assert loads.count == 2


def test_a_request_hears_from_the_model_while_it_loads(triton, load, loads):
    unloaded(load())
    loads.open.clear()
    client = triton.request("tiny_stream", FIELDS, {QUIET_PARAMETER: True})
    beats = [client.responses.get(timeout=30)[0] for _ in range(4)]
    assert all("pid" in report_of(beat) for beat in beats)
    loads.open.set()
    assert report_of(client.all()[-1])["num_steps"] == 6


def test_a_cancel_while_it_loads_ends_that_request_alone(triton, load, loads):
    unloaded(load())
    loads.open.clear()
    given_up, other = (triton.request("tiny_stream", FIELDS) for _ in range(2))
    wait_for(lambda: loads.count == 2)
    given_up.cancelled = True
    assert error_of_last(given_up) == ("CANCELLED", "cancelled before it began")
    loads.open.set()
    assert report_of(other.all()[-1])["num_steps"] == 6


def test_a_deadline_counts_while_it_loads(triton, load, loads):
    unloaded(load())
    loads.open.clear()
    late = triton.request("tiny_stream", FIELDS | {"deadline_ms": 300})
    code, message = error_of_last(late)
    assert (code, message) == ("CANCELLED", "DEADLINE: deadline_ms of 300 passed before it began")
    loads.open.set()


def test_a_deadline_that_leaves_no_time_to_load_is_refused_at_once(triton, load, loads):
    """Once a request has ended, it is known what one costs, and the load comes on top."""
    model = load()
    picture(triton.request("tiny_stream", FIELDS))
    unloaded(model)
    model._residency._load_s = 100.0  # as a large model's
    code, message = error_of(triton.request("tiny_stream", FIELDS | {"deadline_ms": 50_000}))
    assert (code, message.startswith("DEADLINE: deadline_ms is 50000")) == ("CANCELLED", True)
    assert loads.count == 1


def test_a_load_that_fails_answers_who_waits_and_the_next_request_tries_again(triton, load, loads):
    model = load(max_in_flight="2")
    expected = picture(triton.request("tiny_stream", FIELDS))
    unloaded(model)
    loads.breaks = True
    loads.open.clear()
    clients = [
        triton.request("tiny_stream", FIELDS),
        triton.request("tiny_stream", FIELDS, {ERROR_REPORT_PARAMETER: 1}),
    ]
    wait_for(lambda: loads.count == 2)
    time.sleep(0.1)
    loads.open.set()
    message = "the model could not be loaded again: OSError: the disk is gone on purpose"
    assert error_of_last(clients[0]) == ("UNAVAILABLE", message)
    assert report_of(clients[1].all()[-1])["error"] == {"code": "UNAVAILABLE", "message": message}
    assert loads.count == 2, "who waited does not have it tried again"
    assert any("the disk is gone on purpose" in line for line in Logger.lines), "the log has the traceback"
    assert triton.request("tiny_stream", parameters={PING_PARAMETER: True}).all() == []
    loads.breaks = False
    assert np.array_equal(picture(triton.request("tiny_stream", FIELDS)), expected)
    assert loads.count == 3


def test_a_load_that_hangs_fails_the_model_as_any_other_operation_does(triton, load, loads):
    unloaded(load(stuck_after_s="0.5"))
    loads.open.clear()
    expected = "the model failed: a request has been at one operation for more than 0.5 s"
    assert error_of_last(triton.request("tiny_stream", FIELDS)) == ("UNAVAILABLE", expected)
    loads.open.set()


def test_prompts_are_counted_over_all_loads(triton, load, loads):
    model = load()
    for number in range(3):
        picture(triton.request("tiny_stream", FIELDS | {"seed": number}))
    unloaded(model)
    picture(triton.request("tiny_stream", FIELDS))
    texts = MetricFamily.families["taylorseer_texts_total"].metrics
    wait_for(lambda: {each.labels["result"]: each.value for each in texts} == {"hit": 2, "miss": 2})


def test_the_time_to_load_is_in_the_time_that_a_request_was_queued(triton, load, loads):
    model = unloaded(load())
    loads.open.clear()
    threading.Timer(0.5, loads.open.set).start()
    report = report_of(triton.request("tiny_stream", FIELDS).all()[-1])
    assert report["queue_s"] > 0.4
    assert model.admission.expected_wait_s() == 0
    assert model.admission._service_s < 0.4, "it is no sign of how long requests take"


def test_a_model_that_ends_while_it_loads_answers_its_requests(triton, load, loads):
    unloaded(load())
    loads.open.clear()
    clients = [triton.request("tiny_stream", FIELDS) for _ in range(3)]
    wait_for(lambda: loads.count == 2)
    triton.unload("tiny_stream")
    assert [error_of_last(client)[0] for client in clients] == ["CANCELLED"] * 3
    assert triton.exits == [0]
    loads.open.set()
