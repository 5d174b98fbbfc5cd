"""Traces of real requests: Triton's own spans and the plugin's arrive at a collector as one tree."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from plugin.ops.server import Server, ServerConfig, free_ports
from tests.support.front import running_front
from tests.support.repository import copy_model
from triton_taylorseer_client import Client, DeadlineExceeded, InvalidArgument, Progress

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="opentelemetry-proto is not installed"
)
pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

PARENT = "b7ad6b7169203331"  # of the caller's span


@dataclass(frozen=True)
class Span:
    name: str
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    failed: bool
    service: str

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


@dataclass
class Collector:
    """Takes spans over OTLP/HTTP: Triton sends JSON, OpenTelemetry for Python protobuf."""

    spans: list[Span] = field(default_factory=list)

    def receive(self, content_type: str, body: bytes) -> None:
        self.spans += list(_spans_in_json(body) if "json" in content_type else _spans_in_protobuf(body))

    def trace(self, trace: str, wanted: set[str], wait_s: float = 20) -> dict[str, Span]:
        """The spans of a trace by name, the model's behind it where Triton says it, once those wanted are there."""
        deadline = time.monotonic() + wait_s
        while True:
            found = {span.name: span for span in list(self.spans) if span.trace == trace}
            if wanted <= set(found):
                return found
            assert time.monotonic() < deadline, f"only {sorted(found)} of {sorted(wanted)}"
            time.sleep(0.05)


def _spans_in_json(body: bytes) -> Iterator[Span]:
    for resource in json.loads(body)["resourceSpans"]:
        service = _attributes_in_json(resource["resource"])["service.name"]
        for scope in resource["scopeSpans"]:
            for each in scope["spans"]:
                times = int(each["startTimeUnixNano"]), int(each["endTimeUnixNano"])
                parent, attributes = each.get("parentSpanId", ""), _attributes_in_json(each)
                yield Span(each["name"], each["traceId"], each["spanId"], parent, *times, attributes, False, service)


def _attributes_in_json(owner: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in owner.get("attributes", [])}


def _spans_in_protobuf(body: bytes) -> Iterator[Span]:
    for resource in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _attributes_in_protobuf(resource.resource)["service.name"]
        for scope in resource.scope_spans:
            for each in scope.spans:
                ids = each.trace_id.hex(), each.span_id.hex(), each.parent_span_id.hex()
                times = each.start_time_unix_nano, each.end_time_unix_nano
                failed = each.status.code == each.status.STATUS_CODE_ERROR
                yield Span(each.name, *ids, *times, _attributes_in_protobuf(each), failed, service)


def _attributes_in_protobuf(owner: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in owner.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    received = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.receive(self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield received, f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def traced(
    collector: tuple[Collector, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Collector]]:
    received, url = collector
    folder: Path = tmp_path_factory.mktemp("traced") / "models"
    folder.mkdir()
    copy_model(folder, "swan")
    settings = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=1", f"opentelemetry,url={url}")
    settings += ("opentelemetry,resource=service.name=triton", "opentelemetry,bsp_schedule_delay=100")
    options = tuple(f"--trace-config={each}" for each in settings)
    config = ServerConfig(folder, "127.0.0.1", *free_ports(3), extra_args=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with Server(config, log=folder.parent / "log") as server:
            yield server, received


def traceparent(number: int) -> tuple[str, dict[str, str]]:
    """The id of a caller's trace, and the header that makes a request part of it."""
    trace = f"{number:032x}"
    return trace, {"traceparent": f"00-{trace}-{PARENT}-01"}


def spans_over_grpc(
    received: Collector, number: int, ask: Callable[[dict[str, str]], None], model: str = "swan_stream"
) -> dict[str, Span]:
    """The spans of a request over gRPC, which is asked up to five times: for 1 to 4 in a hundred of them Triton 24.10
    starts a trace of its own in place of the caller's (docs/conventions.md)."""
    for attempt in range(5):
        trace, header = traceparent(number + attempt)
        ask(header)
        with suppress(AssertionError):
            return received.trace(trace, {"InferRequest", model, "generate"}, wait_s=6)
    raise AssertionError("none of five requests became part of its caller's trace")


def test_a_plain_call_is_one_tree_from_the_callers_span_to_the_steps(traced):
    server, received = traced
    trace, header = traceparent(1)
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/swan/generate", json.dumps({"prompt": "red apple, 3d"}).encode(), header
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        report = json.loads(json.load(answer)["report"])
    spans = received.trace(trace, {"InferRequest", "swan", "generate", "decode"})
    path = ["InferRequest", "swan", "generate", "denoise"]
    assert [spans[name].parent for name in path] == [PARENT, *(spans[name].id for name in path[:-1])]
    assert spans["generate"].attributes["triton.model_name"] == "swan_stream"
    assert (spans["swan"].service, spans["generate"].service) == ("triton", "triton-taylorseer")
    # Of one clock, and the spans' whole nanoseconds.
    for name in ("queue", "encode", "denoise", "decode"):
        assert spans[name].seconds == pytest.approx(report[f"{name}_s"], abs=1e-6)
    told = {name.removeprefix("taylorseer."): value for name, value in spans["generate"].attributes.items()}
    assert (told["outcome"], told["steps"], told["full_steps"]) == (
        "ok",
        report["num_steps"],
        len(report["full_steps"]),
    )
    # Why the plugin adds spans: Triton's own of a model that answers later is over before the steps are.
    assert spans["swan"].end_ns < spans["denoise"].end_ns


def test_a_stream_through_the_front_is_part_of_its_callers_trace(traced):
    server, received = traced
    body, named = json.dumps({"prompt": "red apple, 3d", "seed": 7}).encode(), {"X-Request-Id": "mine"}
    with running_front(server.grpc_url) as url:

        def ask(header: dict[str, str]) -> None:
            request = urllib.request.Request(
                f"{url}/v1/images/generations", body, {**header, **named, "Content-Type": "application/json"}
            )
            urllib.request.urlopen(request, timeout=60).close()

        spans = spans_over_grpc(received, 20, ask)
    assert [spans[name].parent for name in ("InferRequest", "generate")] == [PARENT, spans["swan_stream"].id]
    assert spans["swan_stream"].attributes["triton.request_id"] == "mine"


def test_requests_that_fail_have_a_failed_span(traced):
    server, received = traced

    def ask_for_no_steps(header: dict[str, str]) -> None:
        with Client(server.grpc_url, "swan", headers=header) as client, pytest.raises(InvalidArgument):
            list(client.stream("red apple, 3d", num_inference_steps=0))

    assert spans_over_grpc(received, 30, ask_for_no_steps)["generate"].failed

    def ask_for_too_much(header: dict[str, str]) -> None:
        with Client(server.grpc_url, "swan", headers=header) as client, pytest.raises(DeadlineExceeded):
            client.generate("red apple, 3d", num_inference_steps=1000, cache_interval=1, deadline_ms=300, height=72)

    span = spans_over_grpc(received, 40, ask_for_too_much, "swan")["generate"]
    assert span.failed
    assert span.attributes["taylorseer.outcome"] == "deadline"
    assert 0 < span.attributes["taylorseer.steps"] < 1000


@pytest.mark.parametrize("value", ["00-zz", "x" * 5000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_traceparent_that_is_none_changes_nothing(traced, value):
    server, _ = traced
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/swan/generate",
        json.dumps({"prompt": "red apple, 3d", "num_inference_steps": 2}).encode(),
        {"traceparent": value},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def test_many_traced_streams_and_cancels_leave_the_server_serving(traced):
    server, received = traced
    before = len(received.spans)

    def run(number: int) -> None:
        with Client(server.grpc_url, "swan") as client:
            for update in client.stream("red apple, 3d", num_inference_steps=40, seed=number):
                if number % 2 and isinstance(update, Progress):
                    break

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 20
    while sum(span.name == "generate" for span in received.spans[before:]) < 12:
        assert time.monotonic() < deadline, "each of them has its span"
        time.sleep(0.05)
