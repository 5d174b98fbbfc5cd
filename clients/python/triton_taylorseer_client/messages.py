"""What the clients send and return: fields, results, errors."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from triton_taylorseer_client.endpoint import Endpoint, why_unreachable

Pixels = npt.NDArray[np.uint8]
KEYWORD = "triton-taylorseer"  # of the settings in a PNG

# The fields of a request: input name -> Triton's dtype
INPUTS = {
    "prompt": "BYTES",
    "negative_prompt": "BYTES",
    "class_label": "INT64",
    "seed": "INT64",
    "num_inference_steps": "INT32",
    "guidance_scale": "FP32",
    "height": "INT32",
    "width": "INT32",
    "num_frames": "INT32",
    "input_image": "BYTES",
    "mask_image": "BYTES",
    "strength": "FP32",
    "cache_preset": "BYTES",
    "cache_interval": "INT32",
    "cache_order": "INT32",
    "cache_warmup_steps": "INT32",
    "cache_cooldown_steps": "INT32",
    "cache_predictor": "BYTES",
    "cache_schedule": "BYTES",
    "cache_coordinate": "BYTES",
    "cache_max_error": "FP32",
    "cache_min_interval": "INT32",
    "cache_max_full_steps": "INT32",
    "deadline_ms": "INT32",
    "priority": "INT32",
    "preview": "BOOL",
}
# Asks for a stream's error as a report that holds its code. Triton 24.10 keeps the code of a stream's error only with a
# header that can make it crash.
ERROR_REPORT_PARAMETER = "taylorseer_error_report"
# Asks for a sign of life on a stream: the request's step at once, and again at least every 5 s. Its silence then tells
# that the process that had the request has ended.
HEARTBEAT_PARAMETER = "taylorseer_heartbeat"
# Asks a stream model what it can do in place of a picture; the answer is the report.
DESCRIPTION_TIMEOUT_S = 30.0  # it is answered at once, unless the model's process is gone
DESCRIBE_PARAMETER = "taylorseer_describe"
STREAM_PARAMETERS = {ERROR_REPORT_PARAMETER: True, HEARTBEAT_PARAMETER: True}
_STATUS = {"INVALID_ARG": "INVALID_ARGUMENT"}  # Triton's name: gRPC's


class GenerationError(Exception):
    """A request that made no picture; the message is the server's."""


class InvalidArgument(GenerationError):
    """A field is out of its range; the message names field, value and range."""


class Unavailable(GenerationError):
    """The server cannot be reached, or its queue is full; the same request may succeed later.

    Attributes:
        retry_after_s: seconds after which the server expects to have room, or None if it does not say.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        hint = re.search(r"try again in ([\d.]+) s", message)
        self.retry_after_s = float(hint[1]) if hint else None


class UnknownModel(GenerationError):
    """The server has no such model."""


class Cancelled(GenerationError):
    """The request was cancelled."""


class DeadlineExceeded(GenerationError):
    """The request's deadline passed before its picture was done."""


@dataclass(frozen=True)
class Progress:
    """How far a request is.

    Attributes:
        step: how many of `num_steps` steps are done.
        num_steps: of the request.
        preview: (height, width, 3) uint8, if one was asked for and is due.
        queue_position: the request's place in the server's queue, 1 for the next one; 0 if it is not queued.
    """

    step: int
    num_steps: int
    preview: Pixels | None = None
    queue_position: int = 0


@dataclass(frozen=True)
class Generation:
    """A result.

    Attributes:
        image: (frames, height, width, 3) uint8.
        report: what the server reports about it.
        model: that made it.
        fields: what was asked for, but for the pictures.
    """

    image: Pixels
    report: dict[str, Any]
    model: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_video(self) -> bool:
        """Whether there is more than one frame."""
        return len(self.image) > 1

    @property
    def settings(self) -> str:
        """Model, fields and report as JSON: what the front's page reads from a file that is dropped on it."""
        told = {"model": self.model, "fields": {**self.fields, "seed": self.report.get("seed")}, "report": self.report}
        return json.dumps(told, default=_plain)

    def save(self, path: Path | str, *, settings: bool = True) -> None:
        """Writes the picture, in the format of the file's suffix, or the video as MP4 (H.264).

        Args:
            path: of the file.
            settings: write `settings` into a PNG, as a text (iTXt) whose keyword is triton-taylorseer.

        Raises:
            ImportError: a video needs packages that are not installed.
            ValueError: the suffix does not fit the result.
        """
        if (Path(path).suffix.lower() == ".mp4") != self.is_video:
            wanted = ".mp4" if self.is_video else ".png or another suffix of pictures"
            raise ValueError(f"path is {path}, must end in {wanted}: the result has {len(self.image)} frames")
        if self.is_video:
            Path(path).write_bytes(encoded_image(self.image, fps=self.report["fps"]))
        else:
            texts = PngInfo()
            if settings and self.model:
                texts.add_itxt(KEYWORD, self.settings)
            Image.fromarray(self.image[0]).save(path, pnginfo=texts)  # other formats do not look at it


def encoded_image(image: Pixels, file_format: str = "png", quality: int = 90, fps: int = 0) -> bytes:
    """A file of one frame, or the MP4 (H.264) of several.

    Args:
        image: (frames, height, width, 3) uint8; height and width of a video are even.
        file_format: the format of one frame, by Pillow's name.
        quality: 0 to 100, for formats that have one.
        fps: frames per second of a video.

    Raises:
        ImportError: a video needs packages that are not installed.
    """
    if len(image) > 1:
        imageio = for_videos("imageio.v3")
        return imageio.imwrite("<bytes>", image, extension=".mp4", plugin="pyav", codec="libx264", fps=fps)
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, format=file_format, quality=quality)
    return file.getvalue()


def for_videos(module: str) -> Any:
    """A module that only videos need, imported when the first one comes.

    Raises:
        ImportError: it is not installed; the message says what is to be done.
    """
    try:
        import_module("av")
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"videos need {error.name}: pip install 'triton-taylorseer-client[video]'") from error


def generation_of(
    result: triton.InferResult, model: str = "", fields: Mapping[str, Any] = MappingProxyType({})
) -> Generation:
    """The result in a plain response, or in the last response of a stream.

    Args:
        result: the response.
        model: that made it.
        fields: of the request.

    Raises:
        GenerationError: the response has no result.
    """
    told = {name: value for name, value in fields.items() if value is not None and not name.endswith("_image")}
    return Generation(_output(result, "image"), _report(result), model, told)


def _plain(value: Any) -> Any:
    """A number of numpy's as JSON has it; anything else as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _output(result: triton.InferResult, name: str) -> npt.NDArray[Any]:
    array = result.as_numpy(name)
    if array is None:
        raise GenerationError(f"the answer has no output {name}, must be of a model that triton-taylorseer serves")
    return array


def _report(result: triton.InferResult) -> dict[str, Any]:
    text = _output(result, "report")[0]
    try:
        report: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise GenerationError(f"the answer's report is not JSON: {error}") from None
    return report


def progress_of(result: triton.InferResult) -> Progress:
    """The progress in any other response of a stream."""
    preview = result.as_numpy("preview")
    step, num_steps = (int(_output(result, name)[0]) for name in ("step", "num_steps"))
    position = result.as_numpy("queue_position")  # servers before 0.2 do not tell it
    return Progress(
        step,
        num_steps,
        preview if preview is not None and preview.size else None,
        0 if position is None else int(position[0]),
    )


def is_last(result: triton.InferResult) -> bool:
    """Whether this response of a stream has its result or its error. The final flag comes in a response of its own."""
    return bool(_output(result, "report")[0])


def outcome_of(
    result: triton.InferResult, url: str, model: str = "", fields: Mapping[str, Any] = MappingProxyType({})
) -> Generation:
    """The result in the last response of a stream; arguments as of `generation_of`, and the server's URL.

    Raises:
        GenerationError: the request has failed.
    """
    if error := _report(result).get("error"):
        raise typed_error(_STATUS.get(error["code"], error["code"]), error["message"], url)
    return generation_of(result, model, fields)


def typed_error(status: str, message: str, url: str) -> GenerationError:
    """The typed error for a gRPC status and message.

    Args:
        status: the name of the status code, or a text that contains it.
        message: the server's sentence.
        url: of the server, for the message if it does not answer.
    """
    if message.startswith("DEADLINE"):
        return DeadlineExceeded(message)
    if "DEADLINE_EXCEEDED" in status or "Deadline Exceeded" in message:
        return DeadlineExceeded(f"{url} gave no picture within the client's time limit")
    if "unknown model" in message.lower():
        return UnknownModel(message)
    if "INVALID_ARGUMENT" in status:
        return InvalidArgument(message)
    if reason := why_unreachable(message, url):
        return Unavailable(reason)
    if "UNAVAILABLE" in status:
        return Unavailable(message)
    if "CANCELLED" in status:
        return Cancelled(message)
    return GenerationError(message)


def channel_arguments(url: str) -> list[tuple[str, Any]]:
    """gRPC's settings for a URL.

    A URL such as dns:///name:8001 may stand for several servers; calls then take turns between them. With host:port all
    calls go to one server, over one connection. What goes to this machine takes no proxy; for other hosts gRPC reads
    `http_proxy`, `grpc_proxy`, `no_proxy` and their like from the environment.

    Raises:
        ValueError: no URL of a server.
    """
    endpoint = Endpoint.of(url)
    arguments: list[tuple[str, Any]] = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    if endpoint.is_local:
        arguments.append(("grpc.enable_http_proxy", 0))
    if endpoint.has_many:
        arguments.append(("grpc.lb_policy_name", "round_robin"))
    return arguments
