"""What a request for a video may hold: OpenAI's fields, and all that a request for an edit may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, FiniteFloat, WithJsonSchema

from clients.openai_api.edit_fields import EditRequest
from clients.openai_api.fields import no_truth
from clients.openai_api.pictures import SCHEMA, Address, picture
from triton_taylorseer_client.messages import InvalidArgument


def _first_frame(value: Any) -> list[bytes | Address]:
    return [picture(value)]


def _one(value: Any) -> Any:
    if value != 1:
        raise ValueError("must be 1: a request makes one video")
    return value


def _no_stream(value: Any) -> Any:
    if value:
        raise ValueError("must be left out: GET /v1/videos/{id} tells how far a video is")
    return value


class VideoRequest(EditRequest):
    """The fields of OpenAI's videos. `input_reference` is the first frame, as `image` and the model's `input_image`."""

    picture_fields: ClassVar[tuple[str, ...]] = (*EditRequest.picture_fields, "input_reference")

    input_reference: Annotated[Any, BeforeValidator(_first_frame), WithJsonSchema(SCHEMA)] = None
    seconds: Annotated[FiniteFloat, BeforeValidator(no_truth), Field(gt=0)] | None = Field(
        None, description="the nearest number of frames that the model makes; left out, the model's own"
    )
    n: Annotated[int, BeforeValidator(_one)] = 1
    stream: Annotated[bool, BeforeValidator(_no_stream)] = False
    progress: Annotated[bool, BeforeValidator(_no_stream)] = False
    partial_images: Annotated[int, BeforeValidator(_no_stream)] = 0

    def with_frames(self, model: str, parameters: Mapping[str, str]) -> VideoRequest:
        """The request with the number of frames that its `seconds` are.

        Args:
            model: that makes it.
            parameters: the model's own.

        Raises:
            InvalidArgument: the model makes pictures, or shorter videos; or `num_frames` is given too.
        """
        most, fps = int(parameters.get("max_frames", 1)), self.fps_of(parameters)
        if most == 1:
            raise InvalidArgument(
                f"model {model} makes pictures, must be one of videos: see POST /v1/images/generations"
            )
        if self.seconds is None:
            return self
        if self._input("num_frames") is not None:
            raise InvalidArgument("seconds is given beside num_frames, must be left out: only one of them applies")
        multiple = int(parameters.get("frames_multiple", 4))
        frames = 1 + multiple * max(0, round((self.seconds * fps - 1) / multiple))
        if frames > most:
            longest = f"{most / fps:.3g}: {model} makes up to {most} frames, {fps} a second"
            raise InvalidArgument(f"seconds is {self.seconds:g}, must be at most {longest}")
        return self.model_copy(update={"num_frames": frames})

    def looks(self, model: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """What OpenAI's `Video` tells of the request, before the video tells better."""
        frames = self._input("num_frames") or int(parameters.get("num_frames", 1))
        size = self.size
        if size == "auto" and not self.has_pictures:
            size = f"{parameters.get('width', 1024)}x{parameters.get('height', 1024)}"
        seconds = f"{frames / self.fps_of(parameters):g}"
        return {"model": self.model or model, "prompt": self.prompt, "seconds": seconds, "size": size}

    @staticmethod
    def fps_of(parameters: Mapping[str, str]) -> int:
        """Frames a second of a model's videos."""
        return int(parameters.get("fps", 16))
