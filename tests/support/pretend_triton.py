"""A pretended Triton for unit tests of plugin.triton_model: models, senders, calls between models and metrics, in this
process. It is stricter than the real one (24.10): what crashes or hangs that fails an assertion here.

Importing this module puts it in the place of `triton_python_backend_utils`: before the files of plugin.triton_model.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
ALL_OUTPUTS = ("image", "b64_json", "report", "step", "num_steps", "preview")  # where a client names none
_WAIT_S = 60.0


class TritonModelException(Exception):
    """What Triton raises."""


class TritonError:
    """An error with a code."""

    INVALID_ARG, UNAVAILABLE, CANCELLED, INTERNAL = "INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"

    def __init__(self, message: str, code: str = "INTERNAL") -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, np.asarray(array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    """Tensors, or an error."""

    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors or ()), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Logger:
    """Keeps what was logged."""

    lines: list[str] = []  # noqa: RUF012 - one log for the process, as Triton's

    @classmethod
    def _log(cls, message: str) -> None:
        cls.lines.append(message)

    log_info = log_warn = log_error = _log


class Metric:
    """A counter, gauge or histogram, touched by one thread alone: two at once have crashed the server."""

    def __init__(self, labels: Mapping[str, str], buckets: list[float] | None = None) -> None:
        self.labels, self.value, self.observed = dict(labels), 0.0, []
        self._thread: int | None = None

    def increment(self, by: float) -> None:
        self._touch()
        self.value += by

    def set(self, value: float) -> None:
        self._touch()
        self.value = value

    def observe(self, value: float) -> None:
        self._touch()
        self.observed.append(value)

    def _touch(self) -> None:
        self._thread = self._thread or threading.get_ident()
        assert self._thread == threading.get_ident(), "metrics are touched from two threads"


class MetricFamily:
    """Metrics of one name."""

    COUNTER, GAUGE, HISTOGRAM = "COUNTER", "GAUGE", "HISTOGRAM"
    families: dict[str, MetricFamily] = {}  # noqa: RUF012 - the server's, by name

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.metrics: list[Metric] = []
        MetricFamily.families[name] = self

    def Metric(self, labels: Mapping[str, str], buckets: list[float] | None = None) -> Metric:  # noqa: N802
        self.metrics.append(Metric(labels, buckets))
        return self.metrics[-1]


class ResponseSender:
    """Collects the responses of one request."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._finished = False
        self._busy = threading.Lock()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        self._use()
        if self._client.breaks:
            raise TritonModelException("the response was not taken on purpose")
        self._finished = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._client.responses.put((response, self._finished))

    def is_cancelled(self) -> bool:
        self._use()
        return self._client.cancelled

    def _use(self) -> None:
        assert self._busy.acquire(blocking=False), "a sender is used from two threads at once"
        self._busy.release()
        assert not self._finished, "a sender is used after the final flag"


@dataclass
class Trace:
    """Triton's span."""

    context: str | None = None

    def get_context(self) -> str | None:
        return self.context


class Request:
    """A request as `execute` is given it: for one thread."""

    def __init__(
        self,
        client: Client,
        inputs: list[Tensor],
        parameters: Mapping[str, Any],
        trace: Trace,
        outputs: Sequence[str] = (),
    ) -> None:
        self._client, self._inputs, self._parameters, self._trace = client, inputs, parameters, trace
        self._outputs = list(outputs or ALL_OUTPUTS)
        self._thread = threading.get_ident()

    def inputs(self) -> list[Tensor]:
        self._check()
        return self._inputs

    def parameters(self) -> str:
        self._check()
        return json.dumps(self._parameters) if self._parameters else ""

    def requested_output_names(self) -> list[str]:
        self._check()
        return self._outputs

    def trace(self) -> Trace:
        self._check()
        return self._trace

    def get_response_sender(self) -> ResponseSender:
        self._check()
        return ResponseSender(self._client)

    def _check(self) -> None:
        assert self._thread == threading.get_ident(), "a request is used from another thread than that of execute"


@dataclass(eq=False)
class Client:
    """What a request's sender sends comes out here.

    Attributes:
        cancelled: whether the client has given up.
        breaks: whether Triton takes none of its responses.
        dead: set when the process that has the request is gone: no response comes any more.
    """

    responses: queue.Queue[tuple[InferenceResponse | None, bool]] = field(default_factory=queue.Queue)
    cancelled: bool = False
    breaks: bool = False
    dead: threading.Event = field(default_factory=threading.Event)

    def all(self) -> list[InferenceResponse]:
        """Every response up to the final flag; fails if that does not come."""
        return list(self.each())

    def each(self) -> Iterator[InferenceResponse]:
        """One response after another."""
        deadline, final = time.monotonic() + _WAIT_S, False
        while not final:
            if self.dead.is_set():
                threading.Event().wait()  # forever, as Triton 24.10
            try:
                response, final = self.responses.get(timeout=0.02)
            except queue.Empty:
                assert time.monotonic() < deadline, "no answer in time"
                continue
            if response is not None:
                yield response


class Triton:
    """The pretended server: loaded models by name."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.lost: list[Any] = []  # whose process died; their threads still are in this one
        self.exits: list[int] = []  # exit codes of processes that ended themselves
        self._lock = threading.Lock()
        self._clients: dict[str, list[Client]] = {}

    def load(self, name: str, model_class: type, folder: Path, parameters: Mapping[str, str] | None = None) -> Any:
        """Loads a model as Triton does, and returns it."""
        config = {
            "parameters": {key: {"string_value": value} for key, value in (parameters or {}).items()},
            "instance_group": [{"kind": "KIND_CPU", "count": 1}],
            "max_batch_size": 0,
        }
        model = model_class()
        model.initialize(
            {
                "model_name": name,
                "model_config": json.dumps(config),
                "model_repository": str(folder),
                "model_version": "1",
                "model_instance_name": f"{name}_0_0",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        self.models[name] = model
        return model

    def request(
        self,
        model: str,
        fields: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        trace: Trace | None = None,
        client: Client | None = None,
        outputs: Sequence[str] = (),
    ) -> Client:
        """Sends a request; text fields are str or bytes, the others have numpy's types or get Triton's."""
        tensors = [_tensor(name, value) for name, value in (fields or {}).items()]
        return self.send(model, tensors, parameters or {}, trace or Trace(), client or Client(), outputs)

    def send(
        self,
        model: str,
        tensors: list[Tensor],
        parameters: Mapping[str, Any],
        trace: Trace,
        client: Client,
        outputs: Sequence[str] = (),
    ) -> Client:
        with self._lock:  # Triton calls `execute` of one instance from one thread at a time
            if model not in self.models:
                raise TritonModelException(f"Failed for execute the inference request. Model '{model}' is not ready.")
            self._clients.setdefault(model, []).append(client)
            self.models[model].execute([Request(client, tensors, parameters, trace, outputs)])
        return client

    def unload(self, name: str) -> None:
        """Ends a model."""
        self.models.pop(name).finalize()

    def lose_process(self, name: str) -> None:
        """The process of a model dies: requests there are never answered, and new ones are refused at once."""
        for client in self._clients.get(name, []):
            client.dead.set()
        self.lost.append(self.models[name])
        self.models[name] = _Dead(name)


class _Dead:
    def __init__(self, name: str) -> None:
        self._name = name

    def execute(self, requests: list[Request]) -> None:
        for request in requests:
            error = TritonError(f"Stub process '{self._name}_0_0' is not healthy.")
            request.get_response_sender().send(
                InferenceResponse(error=error), flags=TRITONSERVER_RESPONSE_COMPLETE_FINAL
            )


class InferenceRequest:
    """A call between models."""

    server: Triton  # set by the test

    def __init__(
        self,
        model_name: str,
        inputs: list[Tensor],
        requested_output_names: list[str],
        parameters: Mapping[str, Any] | None = None,
        trace: Trace | None = None,
        preferred_memory: Any = None,
    ) -> None:
        self._arguments = model_name, inputs, parameters or {}, trace or Trace()

    def exec(self, decoupled: bool = False) -> Any:
        client = self.server.send(*self._arguments, Client())
        return client.each() if decoupled else client.all()[-1]


def unload_model(name: str) -> None:
    """Leaves the model where it is; the log says that it was asked."""
    Logger._log(f"unload {name}")


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        return Tensor(name, value)
    if isinstance(value, str | bytes):
        return Tensor(name, np.array([value.encode() if isinstance(value, str) else value], dtype=np.object_))
    kinds = {bool: np.bool_, int: np.int64, float: np.float32}
    return Tensor(name, np.array([value], dtype=kinds[type(value)]))


def _install() -> None:
    module = ModuleType("triton_python_backend_utils")
    module.__dict__.update({name: value for name, value in globals().items() if name[0] != "_"})
    sys.modules.setdefault("triton_python_backend_utils", module)


_install()
