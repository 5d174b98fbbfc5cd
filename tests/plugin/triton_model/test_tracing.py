"""The spans of one request, without a server."""

from __future__ import annotations

import builtins
import json
import os
import time
from typing import Any

import pytest

from plugin.ops.server import free_ports
from plugin.triton_model.tracing import Ended, Spans, TracingUnavailable

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
CONTEXT = json.dumps({"traceparent": f"00-{TRACE:032x}-{PARENT:016x}-01"})
REPORT = {"queue_s": 0.25, "encode_s": 0.5, "denoise_s": 2.0, "decode_s": 1.0, "engine": "torch", "num_steps": 3}


def spans_of(request: Ended) -> dict[str, Any]:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    spans = Spans(exporter)
    spans.add(request)
    spans.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_has_a_span_with_its_parts_one_after_the_other():
    arrived = time.perf_counter() - 4.0
    began = time.time_ns() - 4_000_000_000
    spans = spans_of(Ended(CONTEXT, "emoji_stream", arrived, "ok", ("full", "forecast", "full"), None, REPORT))
    whole = spans.pop("generate")
    assert (whole.context.trace_id, whole.parent.span_id) == (TRACE, PARENT)
    assert whole.start_time == pytest.approx(began, abs=50_000_000), "two clocks that are read one after the other"
    assert list(spans) == ["queue", "encode", "denoise", "decode"]
    for name, before, end in zip(spans, [None, *spans], (0.25, 0.75, 2.75, 3.75), strict=False):
        assert spans[name].parent.span_id == whole.context.span_id
        assert spans[name].start_time == (spans[before].end_time if before else whole.start_time)
        assert spans[name].end_time - whole.start_time == end * 1e9
    attributes = {"triton.model_name": "emoji_stream", "taylorseer.outcome": "ok", "taylorseer.steps": 3}
    attributes |= {"taylorseer.full_steps": 2, "taylorseer.num_steps": 3, "taylorseer.engine": "torch"}
    assert dict(whole.attributes) == attributes


def test_one_that_failed_says_why_and_how_far_it_came():
    ended = Ended(CONTEXT, "emoji_stream", time.perf_counter(), "deadline", ("full",), "DEADLINE: passed", None)
    (span,) = spans_of(ended).values()
    assert (span.status.status_code.name, span.status.description) == ("ERROR", "DEADLINE: passed")
    assert (span.attributes["taylorseer.outcome"], span.attributes["taylorseer.steps"]) == ("deadline", 1)


def test_nothing_is_exported_unless_the_environment_names_an_endpoint():
    assert Spans.wanted_by({}) is None
    assert Spans.wanted_by({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None


def test_a_collector_that_does_not_answer_keeps_nobody_waiting(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_ports(1)[0]}")
    spans = Spans.wanted_by(os.environ)
    spans.add(Ended(CONTEXT, "emoji_stream", time.perf_counter(), "ok", (), None, REPORT))
    began = time.monotonic()
    spans.close()
    assert time.monotonic() - began < 6, "the exporter itself would try for 10 s"


def test_an_endpoint_without_opentelemetry_is_named(monkeypatch):
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TracingUnavailable, match=r"is not installed: pip install 'triton-taylorseer\[tracing\]'"):
        Spans.wanted_by({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"})
