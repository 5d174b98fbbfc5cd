"""Reports what requests did: metrics and spans. Used by the response thread of a model alone: changes of metrics from
two threads at once have crashed the server (24.10)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import partial

import triton_python_backend_utils as pb_utils

from plugin.errors import Outcome, message_of
from plugin.serving.admission import Admission
from plugin.triton_model.job import Job
from plugin.triton_model.metrics import Metrics, MetricsInTurn
from plugin.triton_model.residency import Residency
from plugin.triton_model.tracing import Ended, Spans, TracingUnavailable


class Reporting:
    """The metrics and spans of one model.

    Args:
        name: of the model.
        labels: of its metrics.
        admission: whose numbers the gauges show.
        residency: whether the model is in memory, and what has become of its prompts.
    """

    def __init__(self, name: str, labels: Mapping[str, str], admission: Admission, residency: Residency) -> None:
        self._name = name
        self._metrics = MetricsInTurn(dict(labels))
        self._spans = _wanted_spans(name)
        self._admission = admission
        self._residency = residency

    def gauges(self, jobs: Iterable[Job]) -> None:
        """Sets the gauges: what runs and waits, what these jobs' caches hold, and whether the model is in memory."""
        loaded = self._residency.loaded
        self._metrics.apply(partial(Metrics.set_gauges, admission=self._admission, jobs=[*jobs], loaded=loaded))

    def answering(self, jobs: Iterable[Job]) -> None:
        """Shows that one of these jobs is in flight, before it is answered and counted."""
        self._metrics.apply(partial(Metrics.show_in_flight, jobs=[*jobs]))

    def ended(self, job: Job) -> None:
        """Counts a job that has been answered, and exports its spans."""
        hits, misses = self._residency.text_counts
        self._metrics.apply(partial(Metrics.count_texts, hits=hits, misses=misses))
        self._metrics.apply(partial(Metrics.count_job, job=job))
        kinds = tuple(kind for kind, _ in job.steps)
        self._trace(job.manner.trace_context, job.arrived, job.error, kinds, job.outputs.get("report"))

    def failed(self) -> None:
        """Counts a job that was answered because its model failed."""
        self._metrics.apply(partial(Metrics.count_request, outcome=Outcome.ERROR))

    def refused(self, error: Exception, trace_context: str | None, arrived: float) -> None:
        """Counts a request that was answered with an error before it became a job, and exports its span."""
        self._metrics.apply(partial(Metrics.count_request, outcome=Outcome.of(error)))
        self._trace(trace_context, arrived, error)

    def close(self) -> None:
        """Exports what is left, and deletes the metrics."""
        if self._spans:
            self._spans.close()
        self._metrics.give_up()

    def _trace(
        self,
        context: str | None,
        arrived: float,
        error: BaseException | None,
        steps: tuple[str, ...] = (),
        report: str | None = None,
    ) -> None:
        """Exports the spans of a request that has ended, where Triton traces it and they are wanted."""
        if self._spans is None or context is None:
            return
        message = None if error is None else message_of(error)
        read = None if report is None else json.loads(report)
        self._spans.add(Ended(context, self._name, arrived, Outcome.of(error).label, steps, message, read))


def _wanted_spans(name: str) -> Spans | None:
    try:
        return Spans.wanted_by(os.environ)
    except TracingUnavailable as error:  # a model without spans is better than none
        pb_utils.Logger.log_warn(f"{name}: {error}")
        return None
