"""A gRPC client of one served model: plain calls, and streams with progress."""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

Pixels = npt.NDArray[np.uint8]

# What a request may say: input name -> Triton dtype
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


# Has a stream's error come as a report with its code: Triton keeps it only with a header with which 24.10 can crash.
_ERROR_REPORT_PARAMETER = "taylorseer_error_report"
_STATUS = {"INVALID_ARG": "INVALID_ARGUMENT"}  # Triton's name: gRPC's


class GenerationError(Exception):
    """A request that gave no picture; the message is the server's."""


class InvalidArgument(GenerationError):
    """A field is out of its range; the message names field, value and range."""


class Unavailable(GenerationError):
    """The server cannot be reached, or its line is full: trying again later may help."""


class Cancelled(GenerationError):
    """The request was cancelled."""


class DeadlineExceeded(GenerationError):
    """The request's deadline passed before its picture was done."""


@dataclass(frozen=True)
class Progress:
    """`step` of `num_steps` steps are done; `preview` is (height, width, 3) uint8 where asked for and due."""

    step: int
    num_steps: int
    preview: Pixels | None = None


@dataclass(frozen=True)
class Generation:
    """A result: `image` is (frames, height, width, 3) uint8, `report` what the server tells about it."""

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
            imageio.imwrite(path, self.image, plugin="pyav", codec="libx264", fps=self.report["fps"])
        else:
            Image.fromarray(self.image[0]).save(path)


class Client:
    """Talks to one model over gRPC; usable as a context manager.

    Args:
        url: host:port of the server's gRPC endpoint.
        model: the model's name; streams go to `<model>_stream`.
    """

    def __init__(self, url: str = "localhost:8001", model: str = "emoji") -> None:
        self._url = url
        self._model = model
        self._client = triton.InferenceServerClient(url)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def generate(self, prompt: str | None = None, *, timeout_s: float | None = None, **fields: Any) -> Generation:
        """Makes a picture in one plain call.

        Args:
            prompt: for models that take one.
            timeout_s: seconds after which the client gives up with `DeadlineExceeded`, or None for never.
            **fields: any input of `INPUTS`; what is None or left out gets the model's default.

        Raises:
            TypeError: an unknown field.
            InvalidArgument, Unavailable, Cancelled, DeadlineExceeded: what went wrong, where Triton tells the kind.
            GenerationError: anything else, an unknown model for example.
        """
        try:
            result = self._client.infer(self._model, _inputs(prompt=prompt, **fields), client_timeout=timeout_s)
        except InferenceServerException as error:
            raise self._error(error) from None
        return _generation(result)

    def stream(
        self, prompt: str | None = None, *, timeout_s: float | None = None, **fields: Any
    ) -> Generator[Progress | Generation, None, None]:
        """Makes a picture and tells how far it is: any number of `Progress`, then one `Generation`.

        Closing the iterator early cancels the request. Arguments and errors are those of `generate`.
        """
        inputs = _inputs(prompt=prompt, **fields)
        answers: queue.SimpleQueue[tuple[Any, InferenceServerException | None]] = queue.SimpleQueue()
        client = triton.InferenceServerClient(self._url)  # a client carries one stream at a time
        finished = complete = False
        try:
            client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=timeout_s)
            with contextlib.suppress(InferenceServerException):  # a stream that broke at once tells why as its answer
                client.async_stream_infer(
                    f"{self._model}_stream",
                    inputs,
                    parameters={_ERROR_REPORT_PARAMETER: True},
                    enable_empty_final_response=True,
                )
            while not finished:
                result, error = answers.get()
                if error is not None:
                    finished = True
                    raise self._error(error)
                finished = result.get_response().parameters["triton_final_response"].bool_param
                if result.get_response().outputs:
                    update = self._update(result)
                    complete = complete or isinstance(update, Generation)
                    yield update
            if not complete:
                raise GenerationError(f"{self._model}_stream ended without a picture")
        finally:
            _stop_stream(client, cancel=not finished)
            client.close()

    def _update(self, result: triton.InferResult) -> Progress | Generation:
        # The picture may come before the final flag, which may have a response of its own; only it has a report.
        report = result.as_numpy("report")[0]
        if not report:
            return _progress(result)
        if error := json.loads(report).get("error"):
            raise self._typed(_STATUS.get(error["code"], error["code"]), error["message"])
        return _generation(result)

    def _error(self, error: InferenceServerException) -> GenerationError:
        return self._typed(str(error.status()), str(error.message()))

    def _typed(self, status: str, message: str) -> GenerationError:
        if message.startswith("DEADLINE") or "DEADLINE_EXCEEDED" in status or "Deadline Exceeded" in message:
            return DeadlineExceeded(message)
        if "INVALID_ARGUMENT" in status:
            return InvalidArgument(message)
        if any(sign in message.lower() for sign in ("failed to connect", "resolution failed", "errors resolving")):
            return Unavailable(f"no server answers at {self._url}: start one with `triton-taylorseer serve`")
        if "UNAVAILABLE" in status:
            return Unavailable(message)
        if "CANCELLED" in status:
            return Cancelled(message)
        return GenerationError(message)


def _stop_stream(client: triton.InferenceServerClient, cancel: bool) -> None:
    stream = client._stream
    client.stop_stream(cancel_requests=cancel)
    if stream is not None:
        # tritonclient 2.73 leaves gRPC's thread waiting for this stream's next request when it cancels: end the wait.
        stream._request_queue.put(None)


def _inputs(**fields: Any) -> list[triton.InferInput]:
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


def _generation(result: triton.InferResult) -> Generation:
    return Generation(result.as_numpy("image"), json.loads(result.as_numpy("report")[0]))


def _progress(result: triton.InferResult) -> Progress:
    preview = result.as_numpy("preview")
    step, num_steps = (int(result.as_numpy(name)[0]) for name in ("step", "num_steps"))
    return Progress(step, num_steps, preview if preview is not None and preview.size else None)
