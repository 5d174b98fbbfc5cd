"""Answers the requests of a stream model from a thread of its own, and hears their cancels from another."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import triton_python_backend_utils as pb_utils

from plugin.errors import Unavailable
from plugin.serving.admission import Admission
from plugin.strict_json import to_json
from plugin.triton_model.backend import ResponseSender
from plugin.triton_model.job import Job
from plugin.triton_model.reporting import Reporting
from plugin.triton_model.responses import FINAL, data_response

_HEARTBEAT_S = 0.1  # how often a plain call hears from its request, and gauges are set
_SIGN_OF_LIFE_S = 5.0  # how often a stream that wants heartbeats hears from its request at least
_CANCEL_POLL_S = 0.02  # how often Triton is asked which streams have been cancelled


class Answers:
    """Sends every response of one model, so that no step waits for Triton, and takes the model out of service where
    that cannot go on.

    Args:
        name: of the model.
        admission: withdraws a queued request that has ended, and knows the place of each.
        reporting: counts what is answered; used by the response thread alone.
        send: what sends a job's news; `send_news` unless a test breaks it.
        stuck_after_s: how long one operation of a request may take; 0 for no limit.
        broken: says why the engine cannot be used any more; None while it can.

    Attributes:
        jobs: the requests that have not been answered.
        failure: why the model has failed, once it has.
        stuck: whether that is because a thread cannot be ended.
    """

    def __init__(
        self,
        name: str,
        admission: Admission,
        reporting: Reporting,
        send: Callable[[Job], None],
        stuck_after_s: float,
        broken: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.jobs: set[Job] = set()
        self.failure: str | None = None
        self.stuck = False
        self._name = name
        self._admission = admission
        self._reporting = reporting
        self._send = send
        self._stuck_after_s = stuck_after_s
        self._broken = broken
        self._outbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._empty_outbox, name=f"{name}-responses", daemon=True),
            threading.Thread(target=self._hear_cancels, name=f"{name}-cancels", daemon=True),
        ]

    def start(self) -> None:
        """Starts the threads; gauges are set at once, so that what scales or alerts by them finds them."""
        self._outbox.put(self._report_gauges)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Sends what is left, and ends the threads."""
        self._closing.set()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join()
        self._reporting.close()

    def pong(self, sender: ResponseSender) -> None:
        """Answers a ping, from the thread that answers all."""
        self._outbox.put(partial(sender.send, flags=FINAL))

    def tell(self, sender: ResponseSender, report: str) -> None:
        """Answers a question about the model with a report, from the same thread."""
        response = data_response({"report": report, "step": 0, "num_steps": 0})
        self._outbox.put(partial(sender.send, response))
        self._outbox.put(partial(sender.send, flags=FINAL))

    def post(self, job: Job) -> None:
        """Has the response thread send what a job has ready."""
        self._outbox.put(partial(self._try_to_send, job))

    def refuse(self, error: Exception, trace_context: str | None, arrived: float) -> None:
        """Counts a request that has been answered with an error before it became a job."""
        self._outbox.put(partial(self._reporting.refused, error, trace_context, arrived))

    def cancel(self, key: str | None = None) -> None:
        """Cancels the job of a key, or all."""
        for job in list(self.jobs):
            job.cancelled = job.cancelled or key is None or job.manner.key == key

    def sweep_queue(self) -> None:
        """Ends the queued requests that have been cancelled or are late."""
        for job in [each for each in list(self.jobs) if each.began is None and not each.ended]:
            try:
                job.check()
            except Exception as error:
                if self._admission.withdraw(job):
                    job.end({}, error)

    def send_news(self, job: Job) -> None:
        """Sends what a job has ready: its end, a heartbeat, or its latest progress."""
        if job not in self.jobs:
            return  # its end overtook the progress that was queued before it
        if job.ended:
            self._reporting.answering(list(self.jobs))
            job.answer(job.error)
            self._reporting.ended(job)
            self.jobs.remove(job)
            self._report_gauges()
        elif job.manner.quiet:  # by its process a plain call knows whether it still is there
            job.send({"report": to_json({"pid": os.getpid()}), "step": 0, "num_steps": 0})
        elif progress := job.take_progress():
            job.send(progress)
        elif job.needs_heartbeat(_SIGN_OF_LIFE_S, position := self._admission.position_of(job)):
            job.send(job.heartbeat(position))

    def _empty_outbox(self) -> None:
        beat_at = time.monotonic()
        while True:
            with suppress(queue.Empty):
                work = self._outbox.get(timeout=_HEARTBEAT_S)
                if work is None:
                    return
                work()
            if time.monotonic() - beat_at >= _HEARTBEAT_S:
                beat_at = time.monotonic()
                self._beat()

    def _beat(self) -> None:
        self.sweep_queue()
        self._fail_if_stuck()
        if self.failure is None and (reason := self._broken()) is not None:
            self._fail(reason)  # its requests are answered at their next step; `serve` loads the model again
        self._report_gauges()
        for job in list(self.jobs):
            if job.manner.quiet or job.needs_heartbeat(_SIGN_OF_LIFE_S, self._admission.position_of(job)):
                self._try_to_send(job)

    def _hear_cancels(self) -> None:
        """The thread that asks Triton which streams have been cancelled: on a busy machine an answer takes
        milliseconds, which no step should wait for."""
        while not self._closing.wait(_CANCEL_POLL_S):
            for job in list(self.jobs):
                job.hear_cancel()

    def _try_to_send(self, job: Job) -> None:
        try:
            self._send(job)
        except pb_utils.TritonModelException as error:  # Triton did not take this one response
            job.cancelled = True
            self._answer_with_error(job, error)
        except BaseException as error:
            self._give_up(job, error)

    def _give_up(self, job: Job, error: BaseException) -> None:
        """Takes the model out of service when its responses can no longer be trusted to go out.

        The job at hand is answered here, the others at their next step; each gets the reason.
        """
        self._fail(f"{type(error).__name__}: {error}")
        self._answer_with_error(job, Unavailable(self.failure))
        try:
            pb_utils.unload_model(self._name)  # readiness then says so; works where the server allows model control
        except Exception as refused:
            pb_utils.Logger.log_error(f"{self._name}: stays loaded and refuses all requests: {refused}")

    def _fail_if_stuck(self) -> None:
        """Takes the model out of service where a request has been at one operation for too long: nothing can end that,
        and it may hold up all others. All are answered here; `serve` loads the model again once its pings fail."""
        limit_s = self._stuck_after_s
        if self.failure or not limit_s or not any(job.busy_s > limit_s for job in list(self.jobs)):
            return
        self.stuck = True
        self._fail(f"a request has been at one operation for more than {limit_s:g} s")
        for job in list(self.jobs):
            self._answer_with_error(job, Unavailable(self.failure))

    def _fail(self, reason: str) -> None:
        self.failure = f"the model failed: {reason}"
        pb_utils.Logger.log_error(f"{self._name}: {self.failure}")
        for job in list(self.jobs):
            job.failure = self.failure

    def _answer_with_error(self, job: Job, error: Exception) -> None:
        if job not in self.jobs:
            return
        self.jobs.remove(job)
        self._reporting.failed()
        try:
            job.answer(error)
        except Exception as lost:
            pb_utils.Logger.log_error(f"{self._name}: a request could not be answered: {lost}")

    def _report_gauges(self) -> None:
        self._reporting.gauges(list(self.jobs))
