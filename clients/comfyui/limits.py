"""What a model accepts and what it does by default, as its server publishes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Limits and defaults of one model's requests; their own defaults are those of a `config.pbtxt` that is silent.

    Attributes:
        max_steps: most denoising steps.
        max_prompt_bytes: longest prompt in bytes of UTF-8.
        min_size, max_size: range of height and width in pixels, which are multiples of `size_multiple`.
        max_frames: most frames, 1 for models of pictures; a video has 1 + a multiple of `frames_multiple`.
        takes_prompt: False for models that take one of `num_classes` class labels.
        num_inference_steps, guidance_scale, height, width, num_frames: of requests that do not say.
        strength: likewise; None for the pipeline's own.
        cache_preset: of requests that set nothing of the cache.
    """

    max_steps: int = 1000
    max_prompt_bytes: int = 8192
    min_size: int = 16
    max_size: int = 2048
    size_multiple: int = 16
    max_frames: int = 1
    frames_multiple: int = 4
    takes_prompt: bool = True
    num_classes: int = 1000
    num_inference_steps: int = 50
    guidance_scale: float = 3.5
    height: int = 1024
    width: int = 1024
    num_frames: int = 1
    strength: float | None = None
    cache_preset: str = "default"

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Limits:
        """What the parameters of a model say.

        Raises:
            ValueError: one of them cannot be read; a server does not load such a model of ours.
        """
        names = {each.name for each in fields(cls)} & parameters.keys()
        return cls(**{name: _READ[name](parameters[name]) for name in names})

    def widened(self, others: Sequence[Limits]) -> Limits:
        """Ranges that hold what each of the others accepts, with the defaults of this one."""
        every = [self, *others]
        return replace(
            self,
            **{name: max(getattr(each, name) for each in every) for name in _MOST},
            min_size=min(each.min_size for each in every),
            size_multiple=math.gcd(*(each.size_multiple for each in every)),
            frames_multiple=math.gcd(*(each.frames_multiple for each in every)),
        )


_MOST = ("max_steps", "max_prompt_bytes", "max_size", "max_frames", "num_classes")


def _kind(default: Any) -> Any:
    return (lambda text: text == "true") if isinstance(default, bool) else float if default is None else type(default)


_READ = {each.name: _kind(each.default) for each in fields(Limits)}

# What holds for every model: nothing that some model accepts is outside.
WIDE = Limits(
    max_prompt_bytes=1 << 20,
    min_size=1,
    max_size=1 << 14,
    size_multiple=1,
    max_frames=10_000,
    frames_multiple=1,
    num_classes=1 << 31,
)
