"""One request to a stream model, from the moment it is accepted until it is answered."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plugin.denoising.events import Pixels, RunEvents
from plugin.errors import Cancelled, DeadlinePassed, Outcome, Unavailable
from plugin.request import GenerationRequest
from plugin.tensors import (
    ERROR_REPORT_PARAMETER,
    HEARTBEAT_PARAMETER,
    KEY_PARAMETER,
    QUIET_PARAMETER,
    TRACE_PARAMETER,
)
from plugin.triton_model.backend import ResponseSender, Trace
from plugin.triton_model.responses import FINAL, data_response, error_response
from plugin.triton_model.unknown import unknown_names
from taylorseer import StepKind

_BETWEEN_POSITIONS_S = 0.5  # a long queue that moves quickly would keep the response thread busy


@dataclass(frozen=True)
class Manner:
    """How a request wants to be answered, as its parameters say.

    Attributes:
        key: the name under which a plain call can cancel it, or None.
        quiet: whether it wants heartbeats in place of progress.
        heartbeats: whether it wants to hear from its request where there is no progress.
        errors_as_report: whether an error goes into the report of its last response.
        unknown: names that it brought and that nobody reads.
        trace_context: of the span that its own is part of, W3C headers in JSON, where it is traced.
    """

    key: str | None = None
    quiet: bool = False
    heartbeats: bool = False
    errors_as_report: bool = False
    unknown: tuple[str, ...] = ()
    trace_context: str | None = None

    @classmethod
    def of(cls, parameters: Mapping[str, Any], trace: Trace) -> Manner:
        """From a request's parameters, and Triton's span of it."""
        return cls(
            parameters.get(KEY_PARAMETER),
            QUIET_PARAMETER in parameters,
            HEARTBEAT_PARAMETER in parameters,
            ERROR_REPORT_PARAMETER in parameters,
            unknown_names(parameters),
            trace.get_context() or _headers(parameters.get(TRACE_PARAMETER)),
        )


@dataclass(eq=False)
class Job(RunEvents):
    """One accepted request: what admission keeps, what its run reports to, and what answers its client.

    The worker thread that runs it writes it; the response thread reads it.

    Attributes:
        request: what is asked for.
        nbytes: what it holds at most while it runs.
        manner: how it wants to be answered.
        arrived: `time.perf_counter()` at arrival.
        due, began: as `plugin.serving.admission.Admitted` has them.
        cancelled: whether its client has given up.
        failure: why the model failed, once it has.
        ended: whether it has a result or an error, to be sent.
        error: what ended it, or None.
        outputs: its result.
        steps: kind ("full" or "forecast") and seconds of each step.
        engine_batches: requests in each engine call that it was the first of.
        cache_bytes: of its anchors now.
    """

    request: GenerationRequest
    nbytes: int
    manner: Manner
    arrived: float
    sender: ResponseSender | None  # None once the final flag is sent: to ask it anything after that crashes the server
    on_start: Callable[[Job], object]
    on_news: Callable[[Job], None]  # has the response thread send what the job has
    began: float | None = None
    cancelled: bool = False
    failure: str | None = None
    ended: bool = False
    error: BaseException | None = None
    outputs: dict[str, Any] = field(default_factory=dict)
    steps: list[tuple[str, float]] = field(default_factory=list)
    engine_batches: list[int] = field(default_factory=list)
    cache_bytes: int = 0
    _alive_at: float = field(default_factory=time.monotonic)
    _progress: dict[str, Any] | None = None
    _step: tuple[int, int] = (0, 0)  # the latest one that was reported, and how many there are
    _sent_at: float = 0.0
    _told_position: int = 0
    _progress_lock: threading.Lock = field(default_factory=threading.Lock)
    _sender_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.due = time.monotonic() - self.request.priority
        self._step = 0, self.request.num_steps

    def start(self) -> None:
        """Admission says that it may begin."""
        self.on_start(self)

    @property
    def carried_bytes(self) -> int:
        """The files that came with the request."""
        return self.request.file_bytes

    # What the run reports, in the worker's thread.

    def begin(self) -> float:
        """Says that its work begins, now that its model is in memory: what it waited for that is no sign of how long
        requests take. Returns `time.perf_counter()`, and raises as `check`."""
        self.began = time.monotonic()
        self.check()
        return time.perf_counter()

    def check(self, step: int = 0, num_steps: int = 0) -> None:
        """As `check_wanted`: at each step, and while it is queued. Shows that the request goes on."""
        self._alive_at = time.monotonic()
        self.check_wanted(step, num_steps)

    def check_wanted(self, step: int = 0, num_steps: int = 0) -> None:
        """Raises where the request is late, its model has failed or its client has given up."""
        where = f"after {step} of {num_steps} steps" if num_steps else "before it began"
        deadline_ms = self.request.deadline_ms
        if deadline_ms is not None and time.perf_counter() - self.arrived > deadline_ms / 1000:
            raise DeadlinePassed(f"DEADLINE: deadline_ms of {deadline_ms} passed {where}")
        if self.failure:
            raise Unavailable(self.failure)
        if self.cancelled or self.sender is None:
            raise Cancelled(f"cancelled {where}")

    def progress(self, step: int, num_steps: int, preview: Pixels | None) -> None:
        """Leaves the latest progress for the response thread; what has not been sent yet is replaced."""
        if self.manner.quiet:
            return
        with self._progress_lock:
            unsent = self._progress
            if unsent and preview is None:
                preview = unsent["preview"]
            self._progress = {"step": step, "num_steps": num_steps, "preview": preview}
            self._step = step, num_steps
        if not unsent:
            self.on_news(self)

    def step_done(self, kind: StepKind, seconds: float) -> None:
        self.steps.append((kind.value, seconds))

    def engine_called(self, batch_size: int) -> None:
        self.engine_batches.append(batch_size)

    def cache_changed(self, delta_bytes: int) -> None:
        self.cache_bytes += delta_bytes

    def end(self, outputs: dict[str, Any], error: BaseException | None) -> None:
        """Ends with a result, or with an error."""
        self.outputs, self.error = outputs, error
        self.ended = True
        self.on_news(self)

    # What the response thread and the cancel thread read and do.

    @property
    def outcome(self) -> Outcome:
        """Of a job that has ended."""
        return Outcome.of(self.error)

    @property
    def busy_s(self) -> float:
        """How long the request has been at one operation: an engine call, the text encoder, the autoencoder."""
        return 0.0 if self.ended else time.monotonic() - self._alive_at

    def hear_cancel(self) -> None:
        """Asks Triton whether the client of a stream has given up; a plain call's cancel comes from the plain model."""
        if not self.manner.quiet:
            with self._sender_lock:
                self.cancelled = self.cancelled or (self.sender is not None and self.sender.is_cancelled())

    def take_progress(self) -> dict[str, Any] | None:
        """The progress to send, once."""
        with self._progress_lock:
            progress, self._progress = self._progress, None
        return progress

    def needs_heartbeat(self, after_s: float, position: int) -> bool:
        """Whether its client waits for a sign of life, and has had none for that long; or for another place in the
        queue."""
        if not self.manner.heartbeats or self.ended:
            return False
        silent_s = time.monotonic() - self._sent_at
        return silent_s > after_s or (position != self._told_position and silent_s > _BETWEEN_POSITIONS_S)

    def heartbeat(self, position: int) -> dict[str, Any]:
        """The step once more, and the place in the queue, from 1; 0 if the request is not queued."""
        self._told_position = position
        step, num_steps = self._step
        return {"step": step, "num_steps": num_steps, "queue_position": position}

    def send(self, outputs: Mapping[str, Any]) -> None:
        """Sends a response that is not the last one."""
        with self._sender_lock:
            if self.sender is not None:
                self.sender.send(data_response(outputs))
                self._sent_at = time.monotonic()

    def answer(self, error: BaseException | None) -> None:
        """Sends the last response, with the error if there is one, and then the final flag alone: clients that ask for
        an empty final response drop what comes with the flag."""
        as_report = self.manner.errors_as_report
        last = data_response(self.outputs) if error is None else error_response(error, as_report)
        with self._sender_lock:
            if self.sender is None:
                return
            self.sender.send(last)
            self.sender.send(flags=FINAL)
            self.sender = None


def _headers(context: Any) -> str | None:
    """A trace context that a request's parameter gave, if it is one: any client can send parameters."""
    try:
        headers = json.loads(context)
        return context if all(isinstance(value, str) for value in headers.values()) else None
    except (TypeError, ValueError, AttributeError):
        return None
