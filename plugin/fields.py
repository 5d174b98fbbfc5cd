"""The fields of a request, one row each: input tensor, allowed values, meaning, and option of the command line.

Light to import: the process of the plain model and the help of the command line read it without torch and numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from plugin.limits import Limits

MAX_SEED = 2**63 - 1
MAX_DEADLINE_MS = 24 * 3600 * 1000
MAX_PRIORITY = 60  # seconds
_MAX_NAME_BYTES = 64
_MAX_SCHEDULE_BYTES = 8192  # a schedule can name many steps

Bound = int | Callable[["Limits"], int]  # the same for every model, or one of the model's limits


class ResponseFormat(Enum):
    """How the picture travels: as pixels, or as a base64 file."""

    RAW = "raw"
    B64_JSON = "b64_json"


class Values(Protocol):
    """What a field may hold."""

    def allowed(self, limits: Limits) -> str:
        """The range in words that follow "must be"."""

    def read(self, value: Any, limits: Limits) -> Any:
        """The value of a request, from what its tensor holds: bytes for text, int, float or bool.

        Raises:
            ValueError: it is not allowed. The message continues the field's name: "is 9, must be from 0 to 8".
        """


@dataclass(frozen=True)
class Field:
    """One field of a request, which is one input of every served model.

    Attributes:
        name: of the input.
        type: Triton's data type, as in config.pbtxt.
        values: what it may hold.
        meaning: one or two sentences, for help and documents.
        option: of `triton-taylorseer`, or None for a field without one.
        shape: of the input; -1 for any length.
    """

    name: str
    type: str
    values: Values
    meaning: str
    option: str | None = None
    shape: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Text:
    """UTF-8 text of a bounded length."""

    max_bytes: Bound

    def allowed(self, limits: Limits) -> str:
        return f"at most {_of(self.max_bytes, limits)} bytes of UTF-8"

    def read(self, value: bytes, limits: Limits) -> str:
        if len(value) > _of(self.max_bytes, limits):
            raise ValueError(f"is {len(value)} bytes long, must be {self.allowed(limits)}")
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is invalid at byte {error.start}, must be UTF-8 text") from None
        if "\0" in text:
            raise ValueError("has a NUL character, must be UTF-8 text without one")
        return text


@dataclass(frozen=True)
class Choice:
    """One member of an enum, by its value."""

    of: type[Enum]

    def allowed(self, limits: Limits) -> str:
        return f"one of: {', '.join(each.value for each in self.of)}"

    def read(self, value: bytes, limits: Limits) -> Enum:
        text = Text(_MAX_NAME_BYTES).read(value, limits)
        try:
            return self.of(text)
        except ValueError:
            raise ValueError(f"is {text!r}, must be {self.allowed(limits)}") from None


@dataclass(frozen=True)
class Integer:
    """An integer in a range, both ends included."""

    low: Bound
    high: Bound

    def allowed(self, limits: Limits) -> str:
        return f"from {_of(self.low, limits)} to {_of(self.high, limits)}"

    def read(self, value: int, limits: Limits) -> int:
        if not _of(self.low, limits) <= value <= _of(self.high, limits):
            raise ValueError(f"is {value}, must be {self.allowed(limits)}")
        return int(value)


@dataclass(frozen=True)
class Number:
    """A finite number in a range, both ends included."""

    low: float
    high: float

    def allowed(self, limits: Limits) -> str:
        return f"a finite number from {self.low} to {self.high}"

    def read(self, value: float, limits: Limits) -> float:
        if not (math.isfinite(value) and self.low <= value <= self.high):
            raise ValueError(f"is {float(value)}, must be {self.allowed(limits)}")
        return float(value)


class Side:
    """Height or width in pixels, as the model can make them."""

    def allowed(self, limits: Limits) -> str:
        return f"a multiple of {limits.size_multiple} from {limits.min_size} to {limits.max_size}"

    def read(self, value: int, limits: Limits) -> int:
        if not limits.min_size <= value <= limits.max_size or value % limits.size_multiple:
            raise ValueError(f"is {value}, must be {self.allowed(limits)}")
        return int(value)


class Frames:
    """A number of frames, as the model's autoencoder can make them."""

    def allowed(self, limits: Limits) -> str:
        if limits.max_frames == 1:
            return "1: this model makes pictures"
        return f"1 + a multiple of {limits.frames_multiple} from 1 to {limits.max_frames}"

    def read(self, value: int, limits: Limits) -> int:
        if not 1 <= value <= limits.max_frames or (value - 1) % limits.frames_multiple:
            raise ValueError(f"is {value}, must be {self.allowed(limits)}")
        return int(value)


class Flag:
    """True or false."""

    def allowed(self, limits: Limits) -> str:
        return "true or false"

    def read(self, value: bool, limits: Limits) -> bool:
        return bool(value)


@dataclass(frozen=True)
class CacheSetting:
    """A setting of `taylorseer.CacheConfig`, which checks the value itself."""

    range: str

    def allowed(self, limits: Limits) -> str:
        return self.range

    def read(self, value: Any, limits: Limits) -> Any:
        return Text(_MAX_SCHEDULE_BYTES).read(value, limits) if isinstance(value, bytes) else value


def _of(bound: Bound, limits: Limits) -> int:
    return bound(limits) if callable(bound) else bound


_PROMPT = Text(lambda limits: limits.max_prompt_bytes)
_STEPS = CacheSetting("an integer from 1 to 1000")

FIELDS: tuple[Field, ...] = (
    Field("prompt", "TYPE_STRING", _PROMPT, "What to show. Models that take a class label take no prompt."),
    Field(
        "negative_prompt",
        "TYPE_STRING",
        _PROMPT,
        "What not to show. Adds a second guidance branch, and with it a second engine call at each full step.",
        "--negative-prompt",
    ),
    Field(
        "class_label",
        "TYPE_INT64",
        Integer(0, lambda limits: limits.num_classes - 1),
        "What to show, for models that take a class label and no prompt.",
        "--class-label",
    ),
    Field("seed", "TYPE_INT64", Integer(0, MAX_SEED), "The seed of the noise. Default: random.", "--seed"),
    Field(
        "num_inference_steps", "TYPE_INT32", Integer(1, lambda limits: limits.max_steps), "Denoising steps.", "--steps"
    ),
    Field(
        "guidance_scale",
        "TYPE_FP32",
        Number(0.0, 100.0),
        "How strongly the picture follows the prompt. With a negative prompt, the scale between the two prompts.",
        "--guidance-scale",
    ),
    Field("height", "TYPE_INT32", Side(), "Height in pixels.", "--height"),
    Field("width", "TYPE_INT32", Side(), "Width in pixels.", "--width"),
    Field("num_frames", "TYPE_INT32", Frames(), "Frames of a video.", "--num-frames"),
    Field(
        "cache_preset", "TYPE_STRING", Text(_MAX_NAME_BYTES), "Cache settings by name, for example paper.", "--preset"
    ),
    Field(
        "cache_interval",
        "TYPE_INT32",
        _STEPS,
        "N: after the warm-up every N-th step is full. 1 turns the cache off.",
        "--interval",
    ),
    Field("cache_order", "TYPE_INT32", CacheSetting("an integer from 0 to 8"), "The order of the forecast.", "--order"),
    Field(
        "cache_warmup_steps",
        "TYPE_INT32",
        CacheSetting("an integer from 0 to 1000"),
        "Number of first steps, all of them full.",
        "--warmup",
    ),
    Field(
        "cache_cooldown_steps",
        "TYPE_INT32",
        CacheSetting("an integer from 0 to 1000"),
        "Number of last steps, all of them full.",
    ),
    Field(
        "cache_predictor",
        "TYPE_STRING",
        CacheSetting("one of: taylor, reuse, newton, hermite, chebyshev"),
        "How features are forecast: taylor, newton, hermite, chebyshev or reuse.",
        "--predictor",
    ),
    Field(
        "cache_schedule",
        "TYPE_STRING",
        CacheSetting("one of: interval, even, or steps from 0 on, ascending"),
        "Which steps are full: interval, even, or the steps themselves, as '0 4 9 13'.",
        "--schedule",
    ),
    Field(
        "cache_coordinate",
        "TYPE_STRING",
        CacheSetting("one of: step, sigma, log_snr"),
        "The coordinate along which forecasts extrapolate.",
    ),
    Field(
        "cache_max_error",
        "TYPE_FP32",
        CacheSetting("a finite number above 0"),
        "Target error of the forecasts. Each full step measures the error and schedules the next one accordingly.",
        "--max-error",
    ),
    Field("cache_min_interval", "TYPE_INT32", _STEPS, "With cache_max_error: the minimum distance between full steps."),
    Field("cache_max_full_steps", "TYPE_INT32", _STEPS, "With cache_max_error: the maximum number of full steps."),
    Field(
        "deadline_ms",
        "TYPE_INT32",
        Integer(1, MAX_DEADLINE_MS),
        "Milliseconds from arrival after which the server gives the request up.",
        "--deadline-ms",
    ),
    Field(
        "priority",
        "TYPE_INT32",
        Integer(-MAX_PRIORITY, MAX_PRIORITY),
        "The request is queued as if it had arrived this many seconds earlier.",
    ),
    Field("response_format", "TYPE_STRING", Choice(ResponseFormat), "How the result travels: as pixels or in base64."),
    Field("preview", "TYPE_BOOL", Flag(), "Whether a stream sends previews."),
)
