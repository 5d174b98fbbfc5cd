"""What goes over the wire: tensors, responses and errors; light to import."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from plugin.errors import InvalidRequest, Outcome, Unavailable, message_of
from plugin.fields import FIELDS
from plugin.strict_json import to_json
from plugin.triton_model.backend import Request, Response, TritonConfig

FINAL: int = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_FORMATS = {"image": b"raw", "b64_json": b"b64_json"}  # of the outputs that carry the picture


def parameters_of(request: Request) -> dict[str, Any]:
    """The parameters of a request.

    Raises:
        InvalidRequest: they are not UTF-8.
    """
    try:
        return json.loads(request.parameters() or "{}")
    except UnicodeDecodeError:
        raise InvalidRequest("a parameter of the request has bytes that are not UTF-8, must be UTF-8 text") from None


def asked_format(given: bytes | None, requested: Collection[str]) -> dict[str, bytes]:
    """The `response_format` that the outputs which a client wants ask for, where it gives none.

    Args:
        given: the request's own, or None.
        requested: the names of the outputs that its client wants.

    Returns:
        The field and its value; empty where the request's own, or the default, decides.

    Raises:
        InvalidRequest: it wants the one output in the other's format.
    """
    wanted = [name for name in _FORMATS if name in requested]
    if len(wanted) != 1:
        return {}
    (output,) = wanted
    if given is not None and given in _FORMATS.values() and given != _FORMATS[output]:
        raise InvalidRequest(
            f"response_format is {given.decode()!r}, must be {_FORMATS[output].decode()!r} or left out: "
            f"the output {output} is asked for"
        )
    return {} if given is not None else {"response_format": _FORMATS[output]}


def with_tensors(config: TritonConfig, outputs: Mapping[str, tuple[str, list[int]]]) -> TritonConfig:
    """The configuration with the tensors of every served model, so that a config.pbtxt says only what is its own.

    Args:
        config: what Triton has read.
        outputs: name -> (data type, dims).
    """
    config.set_max_batch_size(0)
    for field in FIELDS:
        dims = list(field.shape)
        config.add_input({"name": field.name, "data_type": field.type, "dims": dims, "optional": True})
    for name, (data_type, dims) in outputs.items():
        config.add_output({"name": name, "data_type": data_type, "dims": dims})
    return config


def data_response(outputs: Mapping[str, Any]) -> Any:
    """A response of a stream: every output of the contract, empty where there is nothing to say.

    Args:
        outputs: `step` and `num_steps`, and what else there is: `image` (frames, height, width, 3) uint8, `preview`
            (height, width, 3) uint8, `queue_position`, `report` text, `b64_json` bytes.
    """
    image, preview, b64_json = outputs.get("image"), outputs.get("preview"), outputs.get("b64_json")
    arrays = {
        "image": np.zeros((0, 0, 0, 3), np.uint8) if image is None else image,
        "report": np.array([outputs.get("report", "").encode()], dtype=np.object_),
        "step": np.array([outputs["step"]], dtype=np.int32),
        "num_steps": np.array([outputs["num_steps"]], dtype=np.int32),
        "preview": np.zeros((0, 0, 3), np.uint8) if preview is None else preview,
        "queue_position": np.array([outputs.get("queue_position", 0)], dtype=np.int32),
    }
    if b64_json is not None:
        arrays["b64_json"] = np.array([b64_json], dtype=np.object_)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])


def error_response(error: BaseException, as_report: bool = False) -> Any:
    """An error response; with `as_report`, an ordinary response whose report holds code and message, because calls
    between models and streams lose an error's code."""
    code, message = Outcome.of(error).code, message_of(error)
    assert code is not None
    if as_report:
        report = to_json({"error": {"code": code, "message": message}})
        return data_response({"report": report, "step": 0, "num_steps": 0})
    return pb_utils.InferenceResponse(error=named_error(code, message))


def plain_response(response: Response | None) -> Any:
    """What a plain call answers, from the last response of the stream model; None where it sent none."""
    if response is None:
        return error_response(RuntimeError("the stream model ended without a response"))
    if response.has_error():
        message = response.error().message()
        if is_not_ready(message):
            return error_response(Unavailable(message))
        return pb_utils.InferenceResponse(error=response.error())
    tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
    report = json.loads(tensors["report"].as_numpy()[0])
    if "error" in report:
        return pb_utils.InferenceResponse(error=named_error(**report["error"]))
    picture = tensors.get("b64_json") or tensors["image"]
    return pb_utils.InferenceResponse([picture, tensors["report"]])


def named_error(code: str, message: str) -> Any:
    """Triton's error with one of its codes, by the code's name."""
    return pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))


def is_not_ready(message: str) -> bool:
    """Whether another model's error says that it is not loaded. Only the text says it: between models every code
    becomes INTERNAL. To ask Triton whether the model is ready while the server stops has crashed the server and left it
    hanging (24.10)."""
    return message.rstrip(".").endswith(("not ready", "is not healthy"))
