"""The size of a result that follows from its picture."""

from __future__ import annotations

import math

from plugin.limits import Limits

_STRETCH = 0.03  # a picture is said to be stretched where its sides' ratio changes by more


def size_like(width: int, height: int, limits: Limits) -> tuple[int, int]:
    """(height, width) of a result like a picture: its own size where the model can make it, else the nearest.

    A picture that is larger than the model allows is scaled down, one that is smaller is scaled up, both with the ratio
    of its sides; then each side becomes the nearest multiple that the model makes.

    Args:
        width, height: of the picture, in pixels.
        limits: of the model.
    """
    scale = min(1.0, limits.max_size / max(width, height))
    if limits.max_followed_pixels:
        scale = min(scale, math.sqrt(limits.max_followed_pixels / (width * height)))
    scale = max(scale, min(limits.min_size / min(width, height), limits.max_size / max(width, height)))
    return side_like(height * scale, limits), side_like(width * scale, limits)


def side_like(pixels: float, limits: Limits) -> int:
    """The nearest height or width that the model makes."""
    multiple = limits.size_multiple
    low, high = -(-limits.min_size // multiple) * multiple, limits.max_size // multiple * multiple
    return min(high, max(low, round(pixels / multiple) * multiple))


def is_stretched(width: int, height: int, to_width: int, to_height: int) -> bool:
    """Whether a picture of one size looks stretched at another."""
    return abs(math.log((width / height) / (to_width / to_height))) > _STRETCH
