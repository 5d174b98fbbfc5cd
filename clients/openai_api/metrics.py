"""The front's own metrics, as Prometheus reads them. Those of the models are Triton's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

from clients.openai_api.held import Room

_LEFT = 499  # a status for clients that have gone before their answer began
_ELSE = "other"  # the page, and addresses that nothing answers
# From an answer without a picture to a video.
_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0)

router = APIRouter()


class Meter:
    """The metrics of one application.

    Args:
        room: the memory for bodies.
    """

    def __init__(self, room: Room) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "taylorseer_front_requests", "Requests that have ended.", ["endpoint", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "taylorseer_front_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ["endpoint"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "taylorseer_front_requests_in_flight", "Requests whose answer has not ended.", registry=self._registry
        )
        held = Gauge("taylorseer_front_held_bytes", "Bytes of bodies and pictures held.", registry=self._registry)
        held.set_function(lambda: room.taken)

    @contextmanager
    def request(self) -> Iterator[_Counted]:
        """While a request is in flight."""
        with self._in_flight.track_inprogress():
            yield _Counted(self._requests, self._seconds)

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Counted:
    """One request, from its headers on."""

    def __init__(self, requests: Counter, seconds: Histogram) -> None:
        self._requests = requests
        self._seconds = seconds
        self._began = time.perf_counter()

    def ended(self, scope: Scope, status: int) -> None:
        """Counts it.

        Args:
            scope: the request, with the endpoint that has answered.
            status: of the answer; 0 if there was none.
        """
        endpoint = getattr(scope.get("route"), "path_format", _ELSE)  # the pattern: of names there is no end
        self._requests.labels(endpoint, status or _LEFT).inc()
        self._seconds.labels(endpoint).observe(time.perf_counter() - self._began)


def _meter(request: Request) -> Meter:
    return request.app.state.meter


@router.get("/metrics", response_model=None)
async def metrics(meter: Annotated[Meter, Depends(_meter)]) -> Response:
    """The front's metrics, in Prometheus' text format."""
    return Response(meter.text(), media_type=CONTENT_TYPE_LATEST)
