"""What a request may hold: OpenAI's fields, and every input of the served models."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from clients.openai_api.pictures import FILE_SCHEMA, or_list, picture_file, picture_files
from triton_taylorseer_client.messages import INPUTS, InvalidArgument

MAX_RESULTS = 10  # of one request, as in OpenAI's API
_LARGEST_FLOAT32 = 3.4028234663852886e38
_MAX_SEED = 2**63 - 1


def no_truth(value: Any) -> Any:
    """Python counts with true and false; a client that sends them for a number means something else."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    # Pydantic tells of 1e20 that it cannot be parsed.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integer_of(bits: int) -> Any:
    def check(value: int) -> int:
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise ValueError(f"must be an integer of {bits} bits, in the range that the model has for it")
        return value

    return Annotated[int, BeforeValidator(no_truth), AfterValidator(check)]


def _check_float(value: float) -> float:
    if math.fabs(value) > _LARGEST_FLOAT32:
        raise ValueError("must be a number that 32 bits can hold, in the range that the model has for it")
    return value


_PYTHON: dict[str, Any] = {
    "BYTES": str,
    "INT64": _integer_of(64),
    "INT32": _integer_of(32),
    "FP32": Annotated[FiniteFloat, BeforeValidator(no_truth), AfterValidator(_check_float)],
    "BOOL": bool,
}
_PICTURES: dict[str, Any] = {
    "input_image": Annotated[Any, BeforeValidator(picture_files), WithJsonSchema(or_list(FILE_SCHEMA))],
    "mask_image": Annotated[Any, BeforeValidator(picture_file), WithJsonSchema(FILE_SCHEMA)],
}
_Count = Annotated[int, BeforeValidator(no_truth)]


class _OpenAIFields(BaseModel):
    """The fields of OpenAI's images API. Those that have no meaning here may hold anything."""

    model_config = ConfigDict(extra="forbid")
    events: ClassVar[str] = "image_generation"  # begins the types of a stream's events

    prompt: str | None = None
    model: str | None = Field(None, description="None or empty for the default model")
    n: _Count = Field(1, ge=1, le=MAX_RESULTS)
    size: str = Field("auto", description="widthxheight in pixels")
    response_format: Literal["b64_json", "url"] = Field("b64_json", description="url is a data URL")
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: _Count = Field(90, ge=0, le=100, description="quality of jpeg and webp")
    stream: bool = False
    partial_images: _Count = Field(0, ge=0, le=3)
    progress: bool = Field(False, description="on a stream: an event image_generation.progress for each step")
    background: Any = None
    complexity: Any = None
    frame_count: Any = None
    frame_duration_ms: Any = None
    input_fidelity: Any = None
    moderation: Any = None
    quality: Any = None
    safety_identifier: Any = None
    style: Any = None
    svg: Any = None
    user: Any = None

    @model_validator(mode="before")
    @classmethod
    def _as_openai_reads_it(cls, body: Any) -> Any:
        """Null is as left out, and answers of DALL-E are URLs by default: its clients read nothing else."""
        if not isinstance(body, dict):
            return body
        given = {name: value for name, value in body.items() if value is not None or name not in cls.model_fields}
        by_url = str(given.get("model")).startswith("dall-e")
        return ({"response_format": "url"} if by_url else {}) | given

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, size: str) -> str:
        if not re.fullmatch(r"auto|[0-9]{1,5}x[0-9]{1,5}", size):
            raise ValueError("must be auto, or width and height in pixels, as 64x96")
        return size

    @classmethod
    def param_of(cls, name: str, sized: bool) -> str | None:
        """The field that a sentence of the model is about.

        Args:
            name: with which it begins.
            sized: whether the request had a `size`; what is wrong with its height is then wrong with that field.
        """
        if sized and name in ("height", "width"):
            name = "size"
        return name if name in cls.model_fields else None

    @property
    def wants_previews(self) -> bool:
        """Whether the model must send previews: for OpenAI's `partial_images`, or for its own input."""
        return self.partial_images > 0 or bool(self._input("preview"))

    def of_one_frame(self) -> Self:
        """The request for a picture, also of a model of videos.

        Raises:
            InvalidArgument: it asks for more frames than one.
        """
        frames = self._input("num_frames")
        if frames not in (None, 1):
            raise InvalidArgument(f"num_frames is {frames}, must be 1: the answer is a picture")
        return self.model_copy(update={"num_frames": 1})

    def requests(self) -> list[dict[str, Any]]:
        """The inputs of the served model for each picture; only the seeds differ.

        Raises:
            InvalidArgument: two fields that say the same differ, or the fields do not go together.
        """
        if self.stream and self.n != 1:
            raise InvalidArgument(f"n is {self.n}, must be 1 with stream: no event says which picture it shows")
        if self._input("preview") is False and self.partial_images:
            raise InvalidArgument(f"preview is false and partial_images is {self.partial_images}, must agree")
        fields = {name: self._input(name) for name in INPUTS} | self._dimensions()
        fields["preview"] = (self.stream and self.wants_previews) or None
        seed = fields["seed"]
        if seed is None:
            return [fields] * self.n
        if seed > _MAX_SEED - self.n + 1:
            raise InvalidArgument(f"seed is {seed}, must be at most {_MAX_SEED - self.n + 1} where n is {self.n}")
        return [fields | {"seed": seed + picture} for picture in range(self.n)]

    def _dimensions(self) -> dict[str, int]:
        """Width and height by `size`."""
        if self.size == "auto":
            return {}
        sizes = dict(zip(("width", "height"), map(int, self.size.split("x")), strict=True))
        for name, value in sizes.items():
            if self._input(name) not in (None, value):
                raise InvalidArgument(f"size is {self.size} and {name} is {self._input(name)}, must agree")
        return sizes

    def _input(self, name: str) -> Any:
        return getattr(self, name)


if TYPE_CHECKING:
    ImageRequest = _OpenAIFields
else:
    ImageRequest = create_model(
        "ImageRequest",
        __base__=_OpenAIFields,
        **{
            name: (_PICTURES.get(name, _PYTHON[kind] | None), None)
            for name, kind in INPUTS.items()
            if name not in _OpenAIFields.model_fields
        },
    )
