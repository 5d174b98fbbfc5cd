"""A model repository for tests of the client and the command line: models that answer as the contract says, at once."""

from __future__ import annotations

from pathlib import Path

from plugin.fields import FIELDS as REQUEST_FIELDS
from plugin.tensors import INPUTS

# The client leaves the response format at raw.
FIELDS = {name: kind.removeprefix("TYPE_") for name, kind in INPUTS.items() if name != "response_format"}
_LENGTHS = {field.name: field.shape[0] for field in REQUEST_FIELDS}
_OUTPUTS = """
  { name: "image", data_type: TYPE_UINT8, dims: [ -1, -1, -1, 3 ] },
  { name: "report", data_type: TYPE_STRING, dims: [ 1 ] }"""
_STREAM_OUTPUTS = f"""{_OUTPUTS},
  {{ name: "step", data_type: TYPE_INT32, dims: [ 1 ] }},
  {{ name: "num_steps", data_type: TYPE_INT32, dims: [ 1 ] }},
  {{ name: "preview", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ] }}"""

# What both models share. The report echoes what arrived, with its type and shape; a prompt decides what happens.
_COMMON = """
import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb

ERRORS = {
    "invalid": ("INVALID_ARG", "cache_order is 9, must be from 0 to 4"),
    "full": ("UNAVAILABLE", "2 requests are in flight and 1 wait"),
    "cancelled": ("CANCELLED", "cancelled after 3 of 8 steps"),
    "late": ("CANCELLED", "DEADLINE: deadline_ms of 5 passed after 3 of 8 steps"),
    "broken": ("INTERNAL", "it broke"),
}


def read(request):
    values = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    return {**values, "request id": request.request_id()}


def prompt_of(values):
    return values["prompt"][0].decode() if "prompt" in values else ""


refused = {}


def error_of(values):
    if prompt_of(values) == "busy":
        seed = values["seed"][0].item()
        refused[seed] = refused.get(seed, 0) + 1
        if refused[seed] <= 2:
            return pb.InferenceResponse([], pb.TritonError("all taken: try again in 1.0 s", pb.TritonError.UNAVAILABLE))
    if prompt_of(values) in ERRORS:
        code, message = ERRORS[prompt_of(values)]
        return pb.InferenceResponse([], pb.TritonError(message, getattr(pb.TritonError, code)))
    return None


def told(name, value):
    if name in ("input_image", "mask_image"):
        return [each.hex() for each in value]
    return value[0].decode() if value.dtype == object else value[0].item()


def result(values, steps):
    values.pop("error as report", None)
    request_id = values.pop("request id")
    received = {name: [str(value.dtype), list(value.shape), told(name, value)] for name, value in values.items()}
    report = {"num_steps": steps, "full_steps": [0, 5], "total_s": 0.25, "seed": 3, "fps": 8, "received": received}
    report["id"] = request_id
    frames = int(values["num_frames"][0]) if "num_frames" in values else 1
    image = np.arange(frames * 4 * 6 * 3, dtype=np.uint8).reshape(frames, 4, 6, 3)
    return image, json.dumps(report).encode()
"""

_PLAIN = f"""{_COMMON}

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        values = read(request)
        if prompt_of(values) == "slow":
            time.sleep(1)
        image, report = result(values, 10)
        return error_of(values) or pb.InferenceResponse(
            [pb.Tensor("image", image), pb.Tensor("report", np.array([report], dtype=np.object_))]
        )
"""

_STREAM = f"""{_COMMON}
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        self.started, self.cancelled, self.ended_at = [], [], []

    def execute(self, requests):
        for request in requests:
            values = read(request)
            values["error as report"] = "taylorseer_error_report" in (request.parameters() or "")
            threading.Thread(target=self.work, args=(values, request.get_response_sender())).start()

    def work(self, values, sender):
        try:
            self.answer(values, sender)
        except Exception as error:
            sender.send(pb.InferenceResponse([], pb.TritonError(str(error))), flags=FINAL)

    def answer(self, values, sender):
        steps = int(values["num_inference_steps"][0]) if "num_inference_steps" in values else 10
        self.started.append(steps)
        if prompt_of(values) == "busy" and (error := error_of(values)):
            report = json.dumps({{"error": {{"code": "UNAVAILABLE", "message": error.error().message()}}}}).encode()
            sender.send(self.response(0, 0, None, None, report), flags=FINAL)
            return
        for step in range(1, steps + 1):
            if sender.is_cancelled():
                self.cancelled.append(steps)
                self.ended_at.append(step)
                sender.send(flags=FINAL)
                return
            preview = np.full((4, 6, 3), step, np.uint8) if "preview" in values and step % 5 == 0 else None
            sender.send(self.response(step, steps, preview))
            if step == 3 and (error := error_of(values)):
                code, message = ERRORS[prompt_of(values)]
                report = json.dumps({{"error": {{"code": code, "message": message}}}}).encode()
                as_report = values["error as report"]
                sender.send(self.response(0, 0, None, None, report) if as_report else error, flags=FINAL)
                return
            time.sleep(0.01)
        image, report = result(values, steps)
        seen = {{"started": self.started, "cancelled": self.cancelled, "ended_at": self.ended_at}}
        report = json.dumps({{**json.loads(report), **seen}}).encode()
        last = self.response(steps, steps, None, image, report)
        if prompt_of(values) == "separate final flag":
            sender.send(last)
            sender.send(flags=FINAL)
        elif prompt_of(values) == "nothing":
            sender.send(flags=FINAL)
        else:
            sender.send(last, flags=FINAL)

    def response(self, step, steps, preview, image=None, report=b""):
        arrays = {{
            "image": np.zeros((0, 0, 0, 3), np.uint8) if image is None else image,
            "report": np.array([report], dtype=np.object_),
            "step": np.array([step], np.int32),
            "num_steps": np.array([steps], np.int32),
            "preview": np.zeros((0, 0, 3), np.uint8) if preview is None else preview,
        }}
        return pb.InferenceResponse([pb.Tensor(name, array) for name, array in arrays.items()])
"""


def make_repository(folder: Path) -> Path:
    """A repository that serves `echo`, and the same under the default name `emoji`."""
    for name in ("echo", "emoji"):
        write_echo(folder, name)
    return folder


def write_echo(folder: Path, name: str) -> None:
    """Writes the plain model and the stream model of that name."""
    write_model(folder, name, _PLAIN, FIELDS, _OUTPUTS)
    decoupled = "model_transaction_policy { decoupled: true }"
    write_model(folder, f"{name}_stream", _STREAM, FIELDS, _STREAM_OUTPUTS, decoupled)


def write_model(folder: Path, name: str, code: str, inputs: dict[str, str], outputs: str, more: str = "") -> None:
    """Writes one Python-backend model."""
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1/model.py").write_text(code)
    declared = ",\n".join(
        f'  {{ name: "{field}", data_type: TYPE_{dtype}, dims: [ {_LENGTHS.get(field, 1)} ], optional: true }}'
        for field, dtype in inputs.items()
    )
    (folder / name / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: 0\n{more}\n'
        f"input [\n{declared}\n]\noutput [{outputs}\n]\ninstance_group [ {{ kind: KIND_CPU, count: 1 }} ]\n"
    )
