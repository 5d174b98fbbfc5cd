"""Triton's gRPC protocol in this process, without a Triton: what its stream models answer is a function of the test."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as protocol

from triton_taylorseer_client.messages import DESCRIBE_PARAMETER, encoded_image

_THREADS = 64  # a stream keeps one
_ASKS_FOR_AN_END = "triton_enable_empty_final_response"
_READ: dict[str, Callable[[bytes], Any]] = {
    "BYTES": lambda raw: raw[4:].decode(),
    "INT64": lambda raw: struct.unpack("<q", raw)[0],
    "INT32": lambda raw: struct.unpack("<i", raw)[0],
    "FP32": lambda raw: struct.unpack("<f", raw)[0],
    "BOOL": lambda raw: raw != b"\0",
}
_PICTURES = ("input_image", "mask_image")
DESCRIPTION: Mapping[str, Any] = MappingProxyType({"pipeline": "FluxPipeline", "tasks": []})
PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)


@dataclass(frozen=True)
class Step:
    """Progress, perhaps with a preview."""

    step: int
    num_steps: int
    preview: np.ndarray | None = None
    queue_position: int = 0


@dataclass(frozen=True)
class Picture:
    """The result; the report is JSON's text where a server writes what is no JSON."""

    report: dict[str, Any] | str
    image: np.ndarray = field(default_factory=lambda: PICTURE)


@dataclass(frozen=True)
class Failure:
    """The error of a request, as a report that holds its code."""

    code: str
    message: str


@dataclass(frozen=True)
class Call:
    """One request to a stream model; pictures are lists of files."""

    model: str
    fields: dict[str, Any]
    id: str
    headers: dict[str, str]
    parameters: frozenset[str] = frozenset()


Behaviour = Callable[[Call], Iterator[Step | Picture | Failure]]


def four_steps(call: Call) -> Iterator[Step | Picture]:
    """Progress, a preview at each step where they are asked for, then a picture whose report has what was asked.

    Picture files are in it in base64.
    """
    for step in range(1, 5):
        yield Step(step, 4, np.full((4, 6, 3), step, np.uint8) if call.fields.get("preview") else None)
    frames = call.fields.get("num_frames", 1)
    image = np.zeros((frames, 16, 16, 3), np.uint8) if frames > 1 else PICTURE
    files = {name: [base64.b64encode(file).decode() for file in call.fields.get(name, ())] for name in _PICTURES}
    received = call.fields | {name: texts for name, texts in files.items() if texts}
    yield Picture({"seed": 3, "fps": 8, "model": call.model, "received": received}, image)


class _Servicer(protocol.GRPCInferenceServiceServicer):
    def __init__(
        self,
        models: Sequence[str],
        behaviour: Behaviour,
        parameters: Mapping[str, str],
        description: Mapping[str, Any] | Failure,
    ) -> None:
        self._models = models
        self._behaviour = behaviour
        self._parameters = parameters
        self._description = description

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = [name for model in self._models for name in (model, f"{model}_stream")]
        return messages.ModelStatisticsResponse(
            model_stats=[messages.ModelStatistics(name=name, version="1") for name in names]
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = messages.ModelConfigResponse()
        answer.config.name = request.name
        for name, value in self._parameters.items():
            answer.config.parameters[name].string_value = value
        return answer

    def ModelStreamInfer(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for request in request_iterator:
            fields = _fields_of(request)
            headers = {each.key: each.value for each in context.invocation_metadata()}
            parameters = frozenset(request.parameters)
            call = Call(request.model_name, fields, request.id, headers, parameters)
            behaviour = self._describe if DESCRIBE_PARAMETER in parameters else self._behaviour
            for update in behaviour(call):
                yield _response(update)
            if request.parameters[_ASKS_FOR_AN_END].bool_param:
                yield _end()

    def _describe(self, _: Call) -> Iterator[Picture | Failure]:
        told = self._description
        yield told if isinstance(told, Failure) else Picture(dict(told))


def _fields_of(request: Any) -> dict[str, Any]:
    """Name -> value of each input; they come as bytes or as lists of their type."""
    if request.raw_input_contents:
        given = zip(request.inputs, request.raw_input_contents, strict=True)
        return {
            tensor.name: [*_texts(raw)] if tensor.name in _PICTURES else _READ[tensor.datatype](raw)
            for tensor, raw in given
        }
    lists = {tensor.name: [*tensor.contents.ListFields()[0][1]] for tensor in request.inputs}
    values = {name: values if name in _PICTURES else values[0] for name, values in lists.items()}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _end() -> Any:
    """The final flag, alone, as Triton sends it to clients that ask for an empty final response."""
    answer = messages.ModelInferResponse()
    answer.parameters["triton_final_response"].bool_param = True
    return messages.ModelStreamInferResponse(infer_response=answer)


def _text(content: bytes) -> bytes:
    """One string, as a tensor holds it."""
    return struct.pack("<I", len(content)) + content


def _texts(raw: bytes) -> Iterator[bytes]:
    """The strings of a tensor."""
    while raw:
        end = 4 + struct.unpack("<I", raw[:4])[0]
        yield raw[4:end]
        raw = raw[end:]


def _response(update: Step | Picture | Failure) -> Any:
    step, num_steps, preview, image, report = 0, 0, np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0, 0, 3), np.uint8), ""
    if isinstance(update, Step):
        step, num_steps, preview = update.step, update.num_steps, preview if update.preview is None else update.preview
    elif isinstance(update, Picture):
        image = update.image
        report = update.report if isinstance(update.report, str) else json.dumps(update.report)
    else:
        report = json.dumps({"error": {"code": update.code, "message": update.message}})
    position = update.queue_position if isinstance(update, Step) else 0
    answer = messages.ModelInferResponse()
    for name, kind, shape, raw in (
        ("image", "UINT8", image.shape, image.tobytes()),
        ("b64_json", "BYTES", (1,), _text(base64.b64encode(encoded_image(image, fps=8)) if len(image) else b"")),
        ("report", "BYTES", (1,), _text(report.encode())),
        ("step", "INT32", (1,), struct.pack("<i", step)),
        ("num_steps", "INT32", (1,), struct.pack("<i", num_steps)),
        ("preview", "UINT8", preview.shape, preview.tobytes()),
        ("queue_position", "INT32", (1,), struct.pack("<i", position)),
    ):
        answer.outputs.add(name=name, datatype=kind, shape=shape)
        answer.raw_output_contents.append(raw)
    return messages.ModelStreamInferResponse(infer_response=answer)


@contextmanager
def fake_triton(
    behaviour: Behaviour = four_steps,
    models: Sequence[str] = ("emoji",),
    credentials: grpc.ServerCredentials | None = None,
    host: str = "127.0.0.1",
    parameters: Mapping[str, str] = MappingProxyType({"max_size": "128"}),
    description: Mapping[str, Any] | Failure = DESCRIPTION,
) -> Iterator[str]:
    """The gRPC address of a server with some models; `behaviour` says what a stream answers, `description` what the
    models can do with pictures."""
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.max_receive_message_length", -1)])
    protocol.add_GRPCInferenceServiceServicer_to_server(_Servicer(models, behaviour, parameters, description), server)
    address = f"{host}:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop(grace=None).wait()
