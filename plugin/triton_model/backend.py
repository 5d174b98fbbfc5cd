"""The objects of Triton's Python backend as this package uses them (python_backend 24.10, pb_stub.cc)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt


class Tensor(Protocol):
    """A named tensor in Triton's shared memory."""

    def name(self) -> str:
        """Of the model's input or output."""

    def as_numpy(self) -> npt.NDArray[Any]:
        """The content; text as objects of bytes."""

    def to_dlpack(self) -> Any:
        """The content for `torch.utils.dlpack.from_dlpack`."""


class Error(Protocol):
    """Why a response has no tensors."""

    def message(self) -> str:
        """The sentence."""


class Response(Protocol):
    """A response of another model."""

    def has_error(self) -> bool:
        """Whether it is an error."""

    def error(self) -> Error:
        """The error, where there is one."""

    def output_tensors(self) -> Sequence[Tensor]:
        """Its tensors; none in a response that only ends a stream."""


class ResponseSender(Protocol):
    """Sends the responses of one request, from any thread but one at a time; after the final flag nothing more: to ask
    it anything then crashes the process."""

    def send(self, response: Any = None, flags: int = 0) -> None:
        """Sends a response, or flags alone."""

    def is_cancelled(self) -> bool:
        """Whether the client has given up; Triton is asked, which takes up to a millisecond."""


class Trace(Protocol):
    """Triton's own span of a request."""

    def get_context(self) -> str | None:
        """The W3C headers in JSON; None where Triton does not trace in OpenTelemetry's mode."""


class Request(Protocol):
    """A request as `execute` is given it. Its methods are for the thread of `execute`: calls of one request from two
    threads have crashed the process (24.10)."""

    def inputs(self) -> Sequence[Tensor]:
        """The tensors that were sent."""

    def parameters(self) -> str:
        """Its parameters as a JSON object, or an empty text."""

    def requested_output_names(self) -> Sequence[str]:
        """The outputs that its client wants: those it named, or all of the model."""

    def trace(self) -> Trace:
        """Triton's span of it."""

    def get_response_sender(self) -> ResponseSender:
        """What answers it."""


class TritonConfig(Protocol):
    """The configuration that `auto_complete_config` completes."""

    def set_max_batch_size(self, size: int) -> None:
        """0 for no batch axis."""

    def add_input(self, tensor: Mapping[str, object]) -> None:
        """Name, data_type, dims, optional."""

    def add_output(self, tensor: Mapping[str, object]) -> None:
        """Name, data_type, dims."""

    def set_model_transaction_policy(self, policy: Mapping[str, bool]) -> None:
        """Whether the model is decoupled."""
