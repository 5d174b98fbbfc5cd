"""More requests than a stream model can work on, in a pretended Triton: bounds of the queue, deadlines, intervals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.engines import GuardedEngine
from tests.support.pretend_triton import Client, MetricFamily
from tests.support.stream_models import FIELDS, Gate, error_of, error_of_last, outcomes, report_of
from tests.support.waiting import wait_for


def ask(triton: Any, **fields: Any) -> dict[str, Any]:
    """The report of a request that nothing else is in the way of."""
    return report_of(triton.request("tiny_stream", FIELDS | fields).all()[-1])


@pytest.fixture
def slow(load_stream: Callable[..., Any]) -> Any:
    """A stream model of one slot whose full steps take 20 ms."""

    def load(**parameters: str) -> Any:
        return load_stream(
            engine=lambda engine: GuardedEngine(engine, lambda _: time.sleep(0.02)), max_in_flight="1", **parameters
        )

    return load


@pytest.fixture
def held(load_stream: Callable[..., Any]) -> Any:
    """Loads a stream model whose engine is held until its gate is opened, at the latest at the end."""
    gates = []

    def load(**parameters: str) -> tuple[Any, Gate]:
        model = load_stream(engine=Gate, **parameters)
        gates.append(model.host.engines["transformer"])
        return model, gates[-1]

    yield load
    for gate in gates:
        gate.open.set()


def test_slots_places_and_bytes_bound_what_is_taken_and_others_are_refused_at_once(triton, held):
    model, gate = held(max_in_flight="3", max_waiting="6")
    taken = [triton.request("tiny_stream", FIELDS | {"seed": seed}) for seed in range(9)]
    wait_for(lambda: (model.admission.in_flight, model.admission.waiting) == (3, 6))
    for _ in range(5):
        began = time.monotonic()
        code, message = error_of(triton.request("tiny_stream", FIELDS))
        assert time.monotonic() - began < 0.5, "though the model is as busy as it can be"
        assert code == "UNAVAILABLE"
        assert message.startswith("3 requests are in flight and 6 wait")
        assert "try again in" in message
    assert model.admission.held_bytes <= model.admission.budget_bytes
    gate.open.set()
    assert [report_of(client.all()[-1])["num_steps"] for client in taken] == [6] * 9
    wait_for(lambda: outcomes() == {"ok": 9, "unavailable": 5})
    assert model.admission.held_bytes == 0


def test_a_slot_that_is_free_does_not_help_where_the_bytes_are_taken(triton, held):
    model, gate = held(max_in_flight="3", max_waiting="6")
    first = triton.request("tiny_stream", FIELDS)
    wait_for(lambda: model.admission.in_flight == 1)
    model.admission.budget_bytes = int(1.5 * model.admission.held_bytes)
    second = triton.request("tiny_stream", FIELDS)
    wait_for(lambda: model.admission.waiting == 1)
    assert model.admission.in_flight == 1
    gate.open.set()
    assert [report_of(each.all()[-1])["num_steps"] for each in (first, second)] == [6, 6]


def test_a_deadline_that_passes_in_the_queue_is_told_while_the_request_waits(triton, held):
    model, _ = held(max_in_flight="2")
    for _ in range(2):
        triton.request("tiny_stream", FIELDS)
    wait_for(lambda: model.admission.in_flight == 2)
    began = time.monotonic()
    code, message = error_of(triton.request("tiny_stream", FIELDS | {"deadline_ms": 300}))
    assert (code, message) == ("CANCELLED", "DEADLINE: deadline_ms of 300 passed before it began")
    assert 0.25 < time.monotonic() - began < 3.0, "not when its turn comes"
    wait_for(lambda: model.admission.waiting == 0)


def test_a_deadline_in_the_past_ends_a_request_of_a_size_that_nothing_is_known_of(triton, slow):
    """A millisecond from arrival is over before anything has begun."""
    slow()
    code, message = error_of_last(triton.request("tiny_stream", FIELDS | {"deadline_ms": 1}))
    assert code == "CANCELLED"
    assert message.startswith("DEADLINE: deadline_ms of 1 passed")


def test_a_deadline_stretches_the_interval_and_is_met_or_refused_at_once(triton, slow):
    slow(max_cache_interval="12")
    fields = {"num_inference_steps": 40, "cache_interval": 2, "cache_warmup_steps": 1}
    for _ in range(2):
        usual = ask(triton, **fields)
    stretched = ask(triton, **fields, deadline_ms=int(750 * usual["total_s"]))
    assert 2 < stretched["cache_interval"] <= 12
    assert (usual["stretched_by"], stretched["stretched_by"]) == (None, "deadline")
    assert len(stretched["full_steps"]) < len(usual["full_steps"])
    code, message = error_of(triton.request("tiny_stream", FIELDS | fields | {"deadline_ms": 1}))
    assert code == "CANCELLED"
    assert message.startswith("DEADLINE: deadline_ms is 1, must be at least ")
    assert " for now: " in message
    assert ask(triton, **fields, deadline_ms=60_000)["cache_interval"] == 2


def test_a_long_queue_stretches_intervals_and_says_so(triton, held):
    policy = {"max_waiting": "8", "max_cache_interval": "8", "stretch_from_waiting": "2", "cache_interval": "3"}
    model, gate = held(max_in_flight="1", cache_preset="default", **policy)
    fields = FIELDS | {"num_inference_steps": 30}
    clients: list[Client] = [triton.request("tiny_stream", fields | {"seed": seed}) for seed in range(9)]
    wait_for(lambda: model.admission.waiting == 8)
    gate.open.set()
    reports = [report_of(client.all()[-1]) for client in clients]
    alone = report_of(triton.request("tiny_stream", fields).all()[-1])
    assert (alone["cache_interval"], alone["stretched_by"]) == (3, None)
    stretched = [each for each in reports if each["stretched_by"] == "load"]
    assert {each["cache_interval"] for each in reports if each not in stretched} == {3}
    assert all(3 < each["cache_interval"] <= 8 for each in stretched)
    assert max(each["cache_interval"] for each in stretched) > 5
    assert all(len(each["full_steps"]) < len(alone["full_steps"]) for each in stretched)

    def counted() -> dict[str, float]:
        return {m.labels["reason"]: m.value for m in MetricFamily.families["taylorseer_stretched_total"].metrics}

    wait_for(lambda: counted()["load"] == len(stretched))
