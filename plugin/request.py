"""What a client may ask for: the fields of a generation, their ranges and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from plugin.errors import Outcome, RequestError
from taylorseer import CacheConfig
from taylorseer.schedule import MAX_STEPS

MAX_SEED = 2**63 - 1
MAX_DEADLINE_MS = 24 * 3600 * 1000
MAX_PRIORITY = 60  # seconds
_MAX_CACHE_TEXT = 8192  # bytes; a schedule can name many steps


class ResponseFormat(Enum):
    """How the picture travels: as pixels, or as a base64 file."""

    RAW = "raw"
    B64_JSON = "b64_json"


class StretchedBy(Enum):
    """Why a request's interval is larger than it asked for."""

    DEADLINE = "deadline"
    LOAD = "load"


class InvalidRequest(RequestError, ValueError):
    """A field of a request is missing or out of its range; the message names field, value and range."""

    outcome = Outcome.INVALID


@dataclass(frozen=True)
class Limits:
    """What one model accepts, beside the ranges that hold for every model.

    Attributes:
        max_steps: most denoising steps.
        max_prompt_bytes: longest prompt in bytes of UTF-8.
        min_size, max_size: range of height and width in pixels.
        size_multiple: height and width must be multiples of it.
        max_frames: most frames; 1 for models of pictures.
        frames_multiple: a video has 1 + a multiple of it frames, as its autoencoder compresses time.
        takes_prompt: True for models of a prompt, False for models of a class label.
        num_classes: labels of models of a class label.
    """

    max_steps: int = MAX_STEPS
    max_prompt_bytes: int = 8192
    min_size: int = 16
    max_size: int = 2048
    size_multiple: int = 16
    max_frames: int = 1
    frames_multiple: int = 4
    takes_prompt: bool = True
    num_classes: int = 1000


@dataclass(frozen=True)
class GenerationRequest:
    """One picture or video to make; every field has its final, valid value.

    Attributes:
        prompt: text, for models that take one.
        negative_prompt: what the picture shall not show, or None.
        class_label: for models that take one, else None.
        seed: 0 to 2**63 - 1.
        num_inference_steps: denoising steps, at least 1.
        guidance_scale: 0 to 100.
        height, width: pixels.
        num_frames: 1 for a picture.
        fps: frames per second that a video is meant to be shown at.
        cache: the cache settings.
        deadline_ms: milliseconds from arrival after which the request is given up, or None.
        response_format: how the result travels.
        preview: whether a stream shall carry previews.
        priority: seconds of head start over the others, -60 to 60: in line and at the engine the request is served as
            if it had come so much earlier, so that none waits for ever.
        stretched_by: why the cache's interval is larger than what the client asked for; None where it is not.
    """

    prompt: str | None
    negative_prompt: str | None
    class_label: int | None
    seed: int
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    num_frames: int
    fps: int
    cache: CacheConfig
    deadline_ms: int | None
    response_format: ResponseFormat
    preview: bool
    priority: int = 0
    stretched_by: StretchedBy | None = None


def parse_request(
    values: Mapping[str, Any],
    defaults: GenerationRequest,
    limits: Limits,
    random_seed: int,
    presets: Mapping[str, CacheConfig] | None = None,
) -> GenerationRequest:
    """The request that a client's values make, with the model's defaults for what is left out.

    Args:
        values: by field name; text as bytes, numbers as int or float.
        defaults: the model's defaults.
        limits: what the model accepts.
        random_seed: the seed where none is given.
        presets: the model's cache settings by name, which `cache_preset` chooses from. A request that chooses none and
            sets some of them itself starts from "default"; one that does neither gets those of `defaults`.

    Raises:
        InvalidRequest: a value is missing or out of its range.
    """
    reader = _Reader(values)
    prompt = reader.text("prompt", limits.max_prompt_bytes)
    negative_prompt = reader.text("negative_prompt", limits.max_prompt_bytes)
    _check_subject(prompt, values.get("class_label"), limits)
    if negative_prompt is not None and not limits.takes_prompt:
        raise InvalidRequest("negative_prompt is given, must be left out: this model takes a class_label")
    response_format = reader.choice("response_format", tuple(each.value for each in ResponseFormat))
    size = {
        name: reader.multiple(name, getattr(defaults, name), limits.min_size, limits.max_size, limits.size_multiple)
        for name in ("height", "width")
    }
    return GenerationRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        class_label=reader.integer("class_label", None, 0, limits.num_classes - 1),
        seed=_given(reader.integer("seed", random_seed, 0, MAX_SEED)),
        num_inference_steps=_given(
            reader.integer("num_inference_steps", defaults.num_inference_steps, 1, limits.max_steps)
        ),
        guidance_scale=reader.number("guidance_scale", defaults.guidance_scale, 0.0, 100.0),
        num_frames=_parse_frames(values.get("num_frames", defaults.num_frames), limits),
        fps=defaults.fps,
        cache=_parse_cache(values, defaults.cache, presets or {}),
        deadline_ms=reader.integer("deadline_ms", defaults.deadline_ms, 1, MAX_DEADLINE_MS),
        priority=_given(reader.integer("priority", defaults.priority, -MAX_PRIORITY, MAX_PRIORITY)),
        response_format=ResponseFormat(response_format) if response_format else defaults.response_format,
        preview=bool(values.get("preview", defaults.preview)),
        height=size["height"],
        width=size["width"],
    )


def _check_subject(prompt: str | None, class_label: int | None, limits: Limits) -> None:
    if prompt is not None and class_label is not None:
        raise InvalidRequest(
            f"class_label is {class_label} beside a prompt, must be left out: only one of them applies"
        )
    if not limits.takes_prompt and prompt is not None:
        raise InvalidRequest("prompt is given, must be left out: this model takes a class_label")
    if limits.takes_prompt and class_label is not None:
        raise InvalidRequest(f"class_label is {class_label}, must be left out: this model takes a prompt")
    if limits.takes_prompt and not prompt:
        raise InvalidRequest(
            f"prompt is {'missing' if prompt is None else 'empty'}, "
            f"must be 1 to {limits.max_prompt_bytes} bytes of UTF-8"
        )
    if not limits.takes_prompt and class_label is None:
        raise InvalidRequest(f"class_label is missing, must be from 0 to {limits.num_classes - 1}")


def _parse_frames(frames: int, limits: Limits) -> int:
    if limits.max_frames == 1 and frames != 1:
        raise InvalidRequest(f"num_frames is {frames}, must be 1: this model makes pictures")
    if not 1 <= frames <= limits.max_frames or (frames - 1) % limits.frames_multiple:
        raise InvalidRequest(
            f"num_frames is {frames}, must be 1 + a multiple of {limits.frames_multiple} from 1 to {limits.max_frames}"
        )
    return frames


def _parse_cache(values: Mapping[str, Any], defaults: CacheConfig, presets: Mapping[str, CacheConfig]) -> CacheConfig:
    reader = _Reader(values)
    presets = {"default": defaults, **presets}
    preset = reader.choice("cache_preset", tuple(presets))
    own: dict[str, Any] = {}
    for field in fields(CacheConfig):
        if (name := f"cache_{field.name}") in values:
            own[field.name] = reader.text(name, _MAX_CACHE_TEXT) if isinstance(values[name], bytes) else values[name]
    if preset is None and not own:
        return defaults
    try:
        return replace(presets[preset or "default"], **own)
    except ValueError as error:  # CacheConfig's message begins with the field's own name
        raise InvalidRequest(f"cache_{error}") from None


@dataclass(frozen=True)
class _Reader:
    values: Mapping[str, Any]

    def text(self, name: str, max_bytes: int) -> str | None:
        raw = self.values.get(name)
        if raw is None:
            return None
        if len(raw) > max_bytes:
            raise InvalidRequest(f"{name} is {len(raw)} bytes long, must be at most {max_bytes} bytes of UTF-8")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{name} is invalid at byte {error.start}, must be UTF-8 text") from None
        if "\0" in text:
            raise InvalidRequest(f"{name} has a NUL character, must be UTF-8 text without one")
        return text

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        value = self.text(name, 64)
        if value is not None and value not in choices:
            raise InvalidRequest(f"{name} is {value!r}, must be one of: {', '.join(choices)}")
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self.values.get(name)
        if value is None:
            return default
        if not low <= value <= high:
            raise InvalidRequest(f"{name} is {value}, must be from {low} to {high}")
        return int(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = float(self.values.get(name, default))
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequest(f"{name} is {value}, must be a finite number from {low} to {high}")
        return value

    def multiple(self, name: str, default: int, low: int, high: int, of: int) -> int:
        value = self.values.get(name, default)
        if not low <= value <= high or value % of:
            raise InvalidRequest(f"{name} is {value}, must be a multiple of {of} from {low} to {high}")
        return int(value)


def _given(value: int | None) -> int:
    assert value is not None
    return value
