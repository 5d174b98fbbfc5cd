"""The plain model, `<name>`: one light process that answers any number of calls at once through `<name>_stream`."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from plugin.errors import Unavailable
from plugin.tensors import (
    CANCEL_PARAMETER,
    ERROR_REPORT_PARAMETER,
    KEY_PARAMETER,
    OUTPUTS,
    PING_PARAMETER,
    QUIET_PARAMETER,
    TRACE_PARAMETER,
    UNKNOWN_PARAMETER,
)
from plugin.triton_model.backend import Request, Response, ResponseSender, TritonConfig
from plugin.triton_model.responses import (
    FINAL,
    asked_format,
    error_response,
    parameters_of,
    plain_response,
    with_tensors,
)
from plugin.triton_model.unknown import unknown_names

_WATCH_S = 0.25  # how often calls are checked for a process that has died
_SILENT_S = 1.0  # a heartbeat comes ten times as often: after this silence the process is checked
_UNHEARD_S = 3.5  # the same for a call that has not had its first heartbeat
_STOPPED_S = 30.0  # a living process that is silent for this long has been stopped, or hangs


class FrontModel:
    """The plain model: hands each call to `<name>_stream`, in a thread of its own, and returns its last response.

    Triton never answers a call between models whose callee's process has died (24.10), so a watching thread does: it
    looks for calls whose heartbeats have stopped. The thread of such a call is left behind, in Triton's code.
    """

    @staticmethod
    def auto_complete_config(config: TritonConfig) -> TritonConfig:
        """Adds the tensors, so that a config.pbtxt says only what is the model's own."""
        return with_tensors(config, OUTPUTS)

    def initialize(self, args: dict[str, str]) -> None:
        """Needs nothing but its own name."""
        self._stream = f"{args['model_name']}_stream"
        self._calls: set[Call] = set()
        self._processes = Processes()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="lost-calls", daemon=True)
        self._watcher.start()

    def execute(self, requests: Sequence[Request]) -> None:
        """Takes the requests over and returns at once; each is answered through its own response sender."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                parameters = parameters_of(request)
                if PING_PARAMETER in parameters:
                    sender.send(pb_utils.InferenceResponse([]), flags=FINAL)
                else:
                    self._start(Call(request, parameters, sender, self._stream, self._processes))
            except Exception as error:
                sender.send(error_response(error), flags=FINAL)

    def finalize(self) -> None:
        """Ends the process, where threads are left behind in Triton's code."""
        self._closing.set()
        self._watcher.join()
        if self._calls:
            os._exit(0)

    def _start(self, call: Call) -> None:
        self._calls.add(call)
        try:
            threading.Thread(target=self._run, args=(call,), name="call", daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            self._calls.discard(call)
            raise Unavailable(f"no more calls can be taken now: {error}") from None

    def _run(self, call: Call) -> None:
        call.run()
        self._calls.discard(call)

    def _watch(self) -> None:
        while not self._closing.wait(_WATCH_S):
            self._processes.check()
            for call in list(self._calls):
                if (reason := call.lost()) is not None:
                    call.answer(error_response(Unavailable(reason)))


class Processes:
    """The processes of a stream model, as far as they have been heard from."""

    def __init__(self) -> None:
        self._alive: set[int] = set()
        self._died_at = float("-inf")

    def heard(self, pid: int) -> None:
        """A heartbeat has come from a process."""
        self._alive.add(pid)

    def check(self) -> None:
        """Checks which of them still run."""
        for pid in [each for each in list(self._alive) if not is_alive(each)]:
            self._alive.discard(pid)
            self._died_at = time.monotonic()

    def has(self, pid: int) -> bool:
        """Whether a process ran at the latest check, or has been heard from since."""
        return pid in self._alive

    def may_have_lost(self, since: float) -> bool:
        """Whether one that could have a call of `time.monotonic()` `since` has died, or none is known."""
        return self._died_at >= since - _SILENT_S or not self._alive


class Call:
    """One plain call: asks the stream model in a thread of its own, and answers once.

    Args:
        request: Triton's; read here, and not kept.
        parameters: of the request.
        sender: answers it.
        stream: the model to ask.
        processes: of that model.
    """

    def __init__(
        self,
        request: Request,
        parameters: Mapping[str, Any],
        sender: ResponseSender,
        stream: str,
        processes: Processes,
    ) -> None:
        # Copies: Triton's own input tensors cannot be sent on, their text arrives damaged (24.10).
        self._inputs = [pb_utils.Tensor(tensor.name(), tensor.as_numpy().copy()) for tensor in request.inputs()]
        given = next((each.as_numpy().flat[0] for each in self._inputs if each.name() == "response_format"), None)
        for name, value in asked_format(given, request.requested_output_names()).items():
            self._inputs.append(pb_utils.Tensor(name, np.array([value], dtype=np.object_)))
        self._unknown = unknown_names(parameters)
        # Not the trace itself: Triton (24.10) frees it when `execute` returns, and crashes where it is used then.
        self._trace_context = request.trace().get_context()
        self._sender: ResponseSender | None = sender  # None once it has answered: nothing may be asked of it then
        self._lock = threading.Lock()
        self._stream = stream
        self._processes = processes
        self._key = str(uuid.uuid4())
        self._began = self._heard_at = time.monotonic()
        self._pid: int | None = None

    def run(self) -> None:
        """Asks the stream model, and answers with its last response."""
        last = None
        parameters: dict[str, Any] = {KEY_PARAMETER: self._key, QUIET_PARAMETER: True, ERROR_REPORT_PARAMETER: True}
        if self._trace_context is not None:
            parameters[TRACE_PARAMETER] = self._trace_context
        if self._unknown:
            parameters[UNKNOWN_PARAMETER] = json.dumps(self._unknown)
        try:
            for response in self._ask(self._inputs, parameters):
                self._heard_at = time.monotonic()
                if response.has_error() or response.output_tensors():
                    last = response
                    self._hear(response)
                if self._is_cancelled():  # at each heartbeat again: which instance hears it is Triton's choice
                    for _ in self._ask([], {CANCEL_PARAMETER: self._key}):
                        pass
            answer = plain_response(last)
        except pb_utils.TritonModelException as error:  # the stream model is not loaded
            answer = error_response(Unavailable(str(error)))
        except Exception as error:
            answer = error_response(error)
        self.answer(answer)

    def answer(self, response: Any) -> None:
        """Sends the response, unless one has been sent."""
        with self._lock:
            if self._sender is not None:
                self._sender.send(response, flags=FINAL)
                self._sender = None

    def lost(self) -> str | None:
        """Why no answer will come, or None where one may."""
        silent_s = time.monotonic() - self._heard_at
        if self._sender is None or silent_s < _SILENT_S:
            return None
        if self._pid is not None and not self._processes.has(self._pid):
            return f"the process of {self._stream} ended with this request in it: try again"
        unheard = self._pid is None and silent_s > _UNHEARD_S and self._processes.may_have_lost(self._began)
        if unheard or silent_s > _STOPPED_S:
            return f"{self._stream} has not been heard from for {silent_s:.0f} s, its process may have ended: try again"
        return None

    def _ask(self, inputs: list[Any], parameters: dict[str, Any]) -> Iterator[Response]:
        request = pb_utils.InferenceRequest(
            model_name=self._stream, inputs=inputs, requested_output_names=[], parameters=parameters
        )
        yield from request.exec(decoupled=True)

    def _hear(self, response: Response) -> None:
        """Learns from a heartbeat which process has the request."""
        if self._pid is None and not response.has_error():
            reports = [each.as_numpy()[0] for each in response.output_tensors() if each.name() == "report"]
            self._pid = next((json.loads(report).get("pid") for report in reports if report), None)
        if self._pid is not None:
            self._processes.heard(self._pid)

    def _is_cancelled(self) -> bool:
        with self._lock:
            return self._sender is not None and self._sender.is_cancelled()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended, and that its parent has not waited for, does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rsplit(")", 1)[-1].split()[0] not in ("Z", "X")
