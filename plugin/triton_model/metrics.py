"""The plugin's metrics, on Triton's metrics port."""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils
from filelock import FileLock, Timeout

from plugin.errors import Outcome
from plugin.paths import lock_file
from plugin.serving.admission import Admission
from plugin.triton_model.job import Job

_STEP_BUCKETS_S = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
_REQUEST_BUCKETS_S = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
_BATCH_BUCKETS = [1, 2, 4, 8, 16, 32]
_MOST_PENDING = 10_000  # changes that are kept while another instance owns the metrics


class MetricsInTurn:
    """The metrics of a model, once those of the instance before it are gone.

    While a model is loaded again, the new instance and the old one exist side by side. Metrics of one name and the same
    labels are one object in the server, which is deleted with the first of its owners; the other would write into freed
    memory (24.10). So the owner holds a lock that the processes of one server share; until it has the lock, an instance
    keeps its changes.

    Args:
        labels: of all metrics.
    """

    def __init__(self, labels: dict[str, str]) -> None:
        self._labels = labels
        self._lock = FileLock(lock_file(os.getppid(), "-".join(labels.values())))
        self._metrics: Metrics | None = None
        self._pending: deque[Callable[[Metrics], None]] = deque(maxlen=_MOST_PENDING)
        self.apply(lambda _: None)

    def apply(self, change: Callable[[Metrics], None]) -> None:
        """Applies a change to the metrics, now or once this instance owns them."""
        self._pending.append(change)
        if self._metrics is None:
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return
            self._metrics = Metrics(self._labels)
        while self._pending:
            self._pending.popleft()(self._metrics)

    def give_up(self) -> None:
        """Deletes the metrics, so that the next instance can own them."""
        self._metrics = None
        self._pending.clear()
        gc.collect()
        self._lock.release()


class Metrics:
    """The plugin's metrics on Triton's own port. A change costs a round trip to the server process, so what steps
    leave behind is reported when a request ends, from the response thread.

    Args:
        labels: of all metrics.
    """

    def __init__(self, labels: dict[str, str]) -> None:
        self._labels = labels
        self._families: list[Any] = []  # a family must outlive its metrics
        self._last: dict[Any, int] = {}  # each gauge's value, and how many texts have been counted
        kinds = ("full", "forecast")
        steps = self._family("taylorseer_steps_total", "Denoising steps done", "COUNTER")
        self._steps = {kind: self._metric(steps, kind=kind) for kind in kinds}
        seconds = self._family("taylorseer_step_seconds", "Seconds of a denoising step", "HISTOGRAM")
        self._seconds = {kind: self._metric(seconds, _STEP_BUCKETS_S, kind=kind) for kind in kinds}
        requests = self._family("taylorseer_requests_total", "Requests by their outcome", "COUNTER")
        self._requests = {each: self._metric(requests, outcome=each.label) for each in Outcome}
        stretched = self._family("taylorseer_stretched_total", "Requests whose interval was stretched", "COUNTER")
        self._stretched = {reason: self._metric(stretched, reason=reason) for reason in ("deadline", "load")}
        texts = self._family("taylorseer_texts_total", "Encodings of prompts, by whether they were known", "COUNTER")
        self._texts = {result: self._metric(texts, result=result) for result in ("hit", "miss")}
        batch = self._family("taylorseer_engine_batch_size", "Requests in one engine call", "HISTOGRAM")
        self._batch = self._metric(batch, _BATCH_BUCKETS)
        self._in_flight = self._metric(self._family("taylorseer_requests_in_flight", "Requests that run", "GAUGE"))
        self._waiting = self._metric(self._family("taylorseer_requests_waiting", "Requests in the queue", "GAUGE"))
        self._cache_bytes = self._metric(self._family("taylorseer_cache_bytes", "Bytes of all anchors", "GAUGE"))
        self._reserved = self._metric(
            self._family("taylorseer_reserved_bytes", "Bytes set aside for the requests that run", "GAUGE")
        )
        self._budget = self._metric(
            self._family("taylorseer_budget_bytes", "Bytes that may be set aside at most", "GAUGE")
        )
        self._loaded = self._metric(
            self._family("taylorseer_model_loaded", "Whether the model's weights are in memory, 1 or 0", "GAUGE")
        )
        self._request_seconds = self._metric(
            self._family("taylorseer_request_seconds", "Seconds from arrival to picture", "HISTOGRAM"),
            _REQUEST_BUCKETS_S,
        )

    def set_gauges(self, admission: Admission, jobs: Sequence[Job], loaded: bool) -> None:
        """Reports how many requests run and wait, what the caches hold, and whether the weights are in memory; what has
        not changed costs nothing.

        A request that has ended is in flight until it has been counted: who sees none in flight sees all counts.
        """
        values = {
            self._in_flight: max(admission.in_flight, sum(job.began is not None for job in jobs)),
            self._waiting: admission.waiting,
            self._cache_bytes: sum(job.cache_bytes for job in jobs),
            self._reserved: admission.held_bytes,
            self._budget: admission.budget_bytes,
            self._loaded: int(loaded),
        }
        for gauge, value in values.items():
            if self._last.get(gauge) != value:
                self._last[gauge] = value
                gauge.set(value)

    def show_in_flight(self, jobs: Sequence[Job]) -> None:
        """Before an answer goes out: one that is over within a heartbeat would be answered, and not counted yet, while
        the gauge still says that nothing is in flight."""
        if not self._last.get(self._in_flight):
            self._last[self._in_flight] = count = sum(job.began is not None for job in jobs)
            self._in_flight.set(count)

    def count_request(self, outcome: Outcome) -> None:
        """Counts a request that has ended."""
        self._requests[outcome].increment(1)

    def count_job(self, job: Job) -> None:
        """Counts what an ended job has done, and the job itself last: who sees it counted sees all that it did."""
        if job.outcome is Outcome.OK:
            self._request_seconds.observe(time.perf_counter() - job.arrived)
        if job.request.stretched_by is not None:
            self._stretched[job.request.stretched_by.value].increment(1)
        for kind in self._steps:
            self._steps[kind].increment(sum(each == kind for each, _ in job.steps))
        for kind, seconds in job.steps:
            self._seconds[kind].observe(seconds)
        for batch_size in job.engine_batches:
            self._batch.observe(batch_size)
        self.count_request(job.outcome)

    def count_texts(self, hits: int, misses: int) -> None:
        """Counts the prompts that have been encoded, or not, since the last time, from how many there have been."""
        for result, total in (("hit", hits), ("miss", misses)):
            new = total - self._last.get(result, 0)
            self._last[result] = total
            self._texts[result].increment(new)

    def _family(self, name: str, description: str, kind: str) -> Any:
        family = pb_utils.MetricFamily(name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind))
        self._families.append(family)
        return family

    def _metric(self, family: Any, buckets: Sequence[float] = (), **labels: str) -> Any:
        return family.Metric(labels={**self._labels, **labels}, **({"buckets": list(buckets)} if buckets else {}))
