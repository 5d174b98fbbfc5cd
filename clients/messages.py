"""What the clients send and return: fields, results, errors, and when a request is sent again."""

from __future__ import annotations

import io
import json
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from PIL import Image

Pixels = npt.NDArray[np.uint8]

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
_NUMPY: dict[str, Any] = {
    "BYTES": np.object_,
    "INT64": np.int64,
    "INT32": np.int32,
    "FP32": np.float32,
    "BOOL": np.bool_,
}

# Asks for a stream's error as a report that holds its code. Triton 24.10 keeps the code of a stream's error only with a
# header that can make it crash.
ERROR_REPORT_PARAMETER = "taylorseer_error_report"
_FIRST_PAUSE_S = 0.5
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
    """`step` of `num_steps` steps are done; `preview` is (height, width, 3) uint8 if one was asked for and is due."""

    step: int
    num_steps: int
    preview: Pixels | None = None


@dataclass(frozen=True)
class Generation:
    """A result: `image` is (frames, height, width, 3) uint8, `report` what the server reports about it."""

    image: Pixels
    report: dict[str, Any]

    @property
    def is_video(self) -> bool:
        """Whether there is more than one frame."""
        return len(self.image) > 1

    def save(self, path: Path | str) -> None:
        """Writes the picture, in the format of the file's suffix, or the video as MP4 (H.264).

        Raises:
            ValueError: the suffix does not fit the result.
        """
        if (Path(path).suffix.lower() == ".mp4") != self.is_video:
            wanted = ".mp4" if self.is_video else ".png or another suffix of pictures"
            raise ValueError(f"path is {path}, must end in {wanted}: the result has {len(self.image)} frames")
        if self.is_video:
            Path(path).write_bytes(encoded_image(self.image, fps=self.report["fps"]))
        else:
            Image.fromarray(self.image[0]).save(path)


def encoded_image(image: Pixels, file_format: str = "png", quality: int = 90, fps: int = 0) -> bytes:
    """A file of one frame, or the MP4 (H.264) of several.

    Args:
        image: (frames, height, width, 3) uint8; height and width of a video are even.
        file_format: the format of one frame, by Pillow's name.
        quality: 0 to 100, for formats that have one.
        fps: frames per second of a video.
    """
    if len(image) > 1:
        return imageio.imwrite("<bytes>", image, extension=".mp4", plugin="pyav", codec="libx264", fps=fps)
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, format=file_format, quality=quality)
    return file.getvalue()


def request_inputs(**fields: Any) -> list[triton.InferInput]:
    """The tensors of a request; fields that are None are left out.

    Raises:
        TypeError: an unknown field.
        InvalidArgument: a value that cannot be sent.
    """
    unknown = sorted(set(fields) - set(INPUTS))
    if unknown:
        raise TypeError(f"{unknown[0]!r} is not a field, must be one of: {', '.join(INPUTS)}")
    inputs = []
    for name, value in fields.items():
        if value is None:
            continue
        tensor = triton.InferInput(name, [1], INPUTS[name])
        tensor.set_data_from_numpy(np.array([_encoded(name, value)], dtype=_NUMPY[INPUTS[name]]))
        inputs.append(tensor)
    return inputs


def _encoded(name: str, value: Any) -> Any:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"{name} is invalid at character {error.start}, must be Unicode text") from None
    if INPUTS[name].startswith("INT"):
        limits = np.iinfo(_NUMPY[INPUTS[name]])
        if not limits.min <= value <= limits.max:  # numpy would wrap it around
            raise InvalidArgument(f"{name} is {value}, must be from {limits.min} to {limits.max}")
    return value


def generation_of(result: triton.InferResult) -> Generation:
    """The result in a plain response, or in the last response of a stream."""
    return Generation(result.as_numpy("image"), json.loads(result.as_numpy("report")[0]))


def _progress(result: triton.InferResult) -> Progress:
    preview = result.as_numpy("preview")
    step, num_steps = (int(result.as_numpy(name)[0]) for name in ("step", "num_steps"))
    return Progress(step, num_steps, preview if preview is not None and preview.size else None)


def is_last(result: triton.InferResult) -> bool:
    """Whether this response of a stream has its result or its error. The final flag comes in a response of its own."""
    return bool(result.as_numpy("report")[0])


def update_of(result: triton.InferResult, url: str) -> Progress | Generation:
    """The progress or the result in a response of a stream.

    Raises:
        GenerationError: the request has failed.
    """
    if not is_last(result):
        return _progress(result)
    if error := json.loads(result.as_numpy("report")[0]).get("error"):
        raise typed_error(_STATUS.get(error["code"], error["code"]), error["message"], url)
    return generation_of(result)


def typed_error(status: str, message: str, url: str) -> GenerationError:
    """The typed error for a gRPC status and message.

    Args:
        status: the name of the status code, or a text that contains it.
        message: the server's sentence.
        url: of the server, for the message if it does not answer.
    """
    if message.startswith("DEADLINE") or "DEADLINE_EXCEEDED" in status or "Deadline Exceeded" in message:
        return DeadlineExceeded(message)
    if "unknown model" in message.lower():
        return UnknownModel(message)
    if "INVALID_ARGUMENT" in status:
        return InvalidArgument(message)
    if any(sign in message.lower() for sign in ("failed to connect", "resolution failed", "errors resolving")):
        return Unavailable(f"no server answers at {url}: start one with `triton-taylorseer serve`")
    if "UNAVAILABLE" in status:
        return Unavailable(message)
    if "CANCELLED" in status:
        return Cancelled(message)
    return GenerationError(message)


def channel_arguments(url: str) -> list[tuple[str, Any]] | None:
    """gRPC's settings for a URL.

    A URL such as dns:///name:8001 may stand for several servers; calls then take turns between them. For host:port the
    answer is None: with tritonclient's own settings all calls go to one server, over one connection.
    """
    if not re.match(r"(dns|ipv4|ipv6):", url):
        return None
    any_length = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    return [*any_length, ("grpc.lb_policy_name", "round_robin")]


class Tries:
    """How often and when a refused request is sent again.

    The pause doubles each time and is at least as long as the server asks for. Up to half of it is added at random, so
    that clients that were refused together do not all return at the same time.

    Args:
        retries: how often it is sent again.
        timeout_s: seconds for all of it, or None for no limit.
    """

    def __init__(self, retries: int, timeout_s: float | None) -> None:
        if retries < 0:
            raise ValueError(f"retries is {retries}, must be at least 0")
        self._left = retries
        self._pause_s = _FIRST_PAUSE_S
        self._ends = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def left_s(self) -> float | None:
        """Seconds that remain, or None for no limit."""
        return None if self._ends is None else max(0.0, self._ends - time.monotonic())

    def pause_s(self, refusal: Unavailable) -> float:
        """Seconds to wait before the next try.

        Raises:
            Unavailable: the refusal itself, if no try or no time is left.
        """
        pause = max(self._pause_s, refusal.retry_after_s or 0.0) * random.uniform(1.0, 1.5)
        if not self._left or (self.left_s is not None and pause >= self.left_s):
            raise refusal
        self._left -= 1
        self._pause_s *= 2
        return pause
