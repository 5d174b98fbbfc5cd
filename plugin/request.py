"""One request with its final values, made from a client's fields and a model's defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from plugin.errors import InvalidRequest as InvalidRequest
from plugin.fields import FIELDS, Field
from plugin.limits import Limits
from plugin.picture_fields import PictureFields
from plugin.pictures import Picture
from plugin.tasks import Task
from plugin.values import ResponseFormat as ResponseFormat
from taylorseer import CacheConfig

_CACHE = "cache_"  # begins the names of fields that set the cache
_FROM_TEXT = (Task("this model"),)  # of a model of which nothing is known: no pictures


class StretchedBy(Enum):
    """Why a request's interval is longer than it asked for."""

    DEADLINE = "deadline"
    LOAD = "load"


@dataclass(frozen=True)
class GenerationRequest:
    """One picture or video to make; every field has its final, valid value.

    Attributes:
        prompt: text, for models that take one.
        negative_prompt: what the picture should not show, or None.
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
        preview: whether a stream sends previews.
        priority: -60 to 60; the request is queued, also at the engine, as if it had arrived this many seconds earlier.
            So none waits forever.
        stretched_by: why the cache's interval is longer than the client asked for; None if it is not.
        task: what it is made with; None for the pipeline as it was loaded, without pictures.
        pictures: the files of input_image, as many as the task takes; a video's frames may be files of their own.
        mask: of the same size as the first of them, or None.
        strength: 0 to 1, above 0; None where the task has none.
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
    task: Task | None = None
    pictures: tuple[Picture, ...] = ()
    mask: Picture | None = None
    strength: float | None = None

    @property
    def num_steps(self) -> int:
        """The denoising steps that run: with a strength below 1, the last ones of the schedule."""
        return self.task.steps(self.num_inference_steps, self.strength) if self.task else self.num_inference_steps

    @property
    def file_bytes(self) -> int:
        """Of the files that came with it."""
        return sum(len(each.file) for each in (*self.pictures, *([self.mask] if self.mask else [])))


def parse_request(
    values: Mapping[str, Any],
    defaults: GenerationRequest,
    limits: Limits,
    random_seed: int,
    presets: Mapping[str, CacheConfig] | None = None,
    tasks: Sequence[Task] | None = None,
) -> GenerationRequest:
    """The request that a client's values make, with the model's defaults for the fields that they leave out.

    Args:
        values: by name in `FIELDS`; text as bytes, pictures as a list of bytes, numbers as int or float. None counts as
            left out, and so does a prompt or negative prompt of blanks alone.
        defaults: the model's defaults.
        limits: what the model accepts; numbers of `defaults` are held to them too.
        random_seed: the seed of a request that gives none.
        presets: the model's cache settings by name, from which `cache_preset` chooses. A request that chooses none but
            sets some cache fields itself starts from "default"; one that does neither gets those of `defaults`.
        tasks: what the model's pipeline can do with pictures; None for a model that takes none.

    Raises:
        InvalidRequest: a value is missing or out of its range.
    """
    given = {name: value for name, value in values.items() if value is not None and not _is_blank(name, value)}
    _check_subject(given, limits, blank="prompt" in values and "prompt" not in given)
    numbers = {name: value for name, value in vars(defaults).items() if isinstance(value, int | float)}
    asked = numbers | {"seed": random_seed} | given
    read = {field.name: _read(field, asked[field.name], limits) for field in FIELDS if field.name in asked}
    of_cache = {name: read.pop(name) for name in [*read] if name.startswith(_CACHE)}
    pictures, masks = (
        tuple(Picture.of(name, file, limits) for file in read.pop(name, ())) for name in ("input_image", "mask_image")
    )
    fields = PictureFields(
        {name: read[name] for name in given if name in read},
        read["num_inference_steps"],
        defaults.strength,
        pictures,
        masks[0] if masks else None,
    )
    cache = _cache(of_cache, defaults.cache, presets or {})
    resolved = fields.resolve(tasks or _FROM_TEXT, limits)
    if tasks is None:
        resolved["task"] = None
    return replace(defaults, **{**read, "cache": cache, **resolved})


def _is_blank(name: str, value: Any) -> bool:
    """Whether it is a prompt without a word, as forms send it for a field that is left empty: it counts as left out."""
    return name in ("prompt", "negative_prompt") and not value.decode("utf-8", "replace").strip()


def _check_subject(given: Mapping[str, Any], limits: Limits, *, blank: bool) -> None:
    """A model takes either a prompt or a class label."""
    prompt, label = given.get("prompt"), given.get("class_label")
    if prompt is not None and label is not None:
        raise InvalidRequest(f"class_label is {label} beside a prompt, must be left out: only one of them applies")
    if not limits.takes_prompt:
        for name in ("prompt", "negative_prompt"):
            if name in given:
                raise InvalidRequest(f"{name} is given, must be left out: this model takes a class_label")
        if label is None:
            raise InvalidRequest(f"class_label is missing, must be from 0 to {limits.num_classes - 1}")
        return
    if label is not None:
        raise InvalidRequest(f"class_label is {label}, must be left out: this model takes a prompt")
    if prompt is None:
        raise InvalidRequest(
            f"prompt is {'empty' if blank else 'missing'}, must be 1 to {limits.max_prompt_bytes} bytes of UTF-8"
        )


def _read(field: Field, value: Any, limits: Limits) -> Any:
    try:
        return field.values.read(value, limits)
    except ValueError as error:
        raise InvalidRequest(f"{field.name} {error}") from None


def _cache(read: dict[str, Any], defaults: CacheConfig, presets: Mapping[str, CacheConfig]) -> CacheConfig:
    if not read:
        return defaults
    presets = {"default": defaults, **presets}
    preset = read.pop("cache_preset", "default")
    if preset not in presets:
        raise InvalidRequest(f"cache_preset is {preset!r}, must be one of: {', '.join(presets)}")
    try:
        return replace(presets[preset], **{name.removeprefix(_CACHE): value for name, value in read.items()})
    except ValueError as error:  # CacheConfig's message begins with the setting's own name
        raise InvalidRequest(f"{_CACHE}{error}") from None
