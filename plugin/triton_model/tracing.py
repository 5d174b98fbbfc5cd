"""What a request did, as OpenTelemetry spans below those that Triton itself exports."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PARTS = ("queue", "encode", "denoise", "decode")  # in this order, one after the other
_LAST_SPANS_S = 2.0  # a model that is unloaded must not keep the server waiting
_OF_REPORT = ("num_steps", "engine_calls", "cache_bytes", "cache_interval", "engine", "height", "width", "num_frames")


class TracingUnavailable(Exception):
    """Spans are wanted and cannot be exported; the message says what to do."""


@dataclass(frozen=True)
class Ended:
    """A request that has ended.

    Attributes:
        context: of Triton's span of the request, as W3C headers in JSON: what `trace().get_context()` returns.
        model: the served model's name.
        arrived: `time.perf_counter()` at arrival.
        outcome: as in the metrics.
        steps: what each denoising step that was done was, "full" or "forecast".
        error: the error's sentence; None where there is none.
        report: of a request that has a picture; None of others.
    """

    context: str
    model: str
    arrived: float
    outcome: str
    steps: tuple[str, ...]
    error: str | None
    report: Mapping[str, Any] | None


class Spans:
    """Exports the spans of requests that have ended, over OTLP/HTTP from a thread of its own.

    Triton's own span of a decoupled model ends when `execute` returns, before the first step. So each request gets a
    span `generate` from its arrival to its end, and below it `queue`, `encode`, `denoise` and `decode`. The exporter
    reads OpenTelemetry's own environment: endpoint, headers, time-outs, resource attributes.

    Args:
        exporter: None for one that sends where the environment says.

    Raises:
        TracingUnavailable: OpenTelemetry's SDK or its exporter is not installed.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingUnavailable(
                f"{ENDPOINTS[1]} is set, but {error.name} is not installed: pip install 'triton-taylorseer[tracing]'"
            ) from None
        self._exporter = exporter or OTLPSpanExporter()
        named = Resource.create({"service.name": "triton-taylorseer"})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("triton-taylorseer")

    @classmethod
    def wanted_by(cls, environment: Mapping[str, str]) -> Spans | None:
        """Those of a process with this environment; None where it names no endpoint.

        Raises:
            TracingUnavailable: it names one, and OpenTelemetry is not installed.
        """
        return cls() if any(environment.get(name) for name in ENDPOINTS) else None

    def add(self, request: Ended) -> None:
        """Makes the spans of a request that has just ended; costs about 0.2 ms and waits for nothing."""
        from opentelemetry.trace import Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # The clock of perf_counter has no date; the request has ended just now.
        arrived = time.time_ns() - _nanoseconds(time.perf_counter() - request.arrived)
        report = request.report or {}
        full_steps = request.steps.count("full")
        attributes: dict[str, Any] = {"outcome": request.outcome, "steps": len(request.steps), "full_steps": full_steps}
        attributes |= {name: report[name] for name in _OF_REPORT if name in report}
        span = self._tracer.start_span(
            "generate",
            TraceContextTextMapPropagator().extract(json.loads(request.context)),
            start_time=arrived,
            attributes={"triton.model_name": request.model}
            | {f"taylorseer.{name}": value for name, value in attributes.items()},
        )
        if request.error is not None:
            span.set_status(Status(StatusCode.ERROR, request.error))
        self._add_parts(span, arrived, report)
        span.end()

    def close(self) -> None:
        """Exports what has not been, and ends the thread; a collector that does not answer is waited for briefly."""
        flushing = threading.Thread(target=self._provider.force_flush, name="last-spans", daemon=True)
        flushing.start()
        flushing.join(_LAST_SPANS_S)
        self._exporter.shutdown()  # ends its retries
        self._provider.shutdown()

    def _add_parts(self, parent: Any, began: int, report: Mapping[str, Any]) -> None:
        from opentelemetry.trace import set_span_in_context

        within = set_span_in_context(parent)
        for name in _PARTS:
            if f"{name}_s" in report:
                part = self._tracer.start_span(name, within, start_time=began)
                began += _nanoseconds(report[f"{name}_s"])
                part.end(began)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
