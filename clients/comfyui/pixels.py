"""Pictures as ComfyUI has them (docs.comfy.org/custom-nodes/backend/images_and_masks) and as they travel.

Letters: B pictures of a batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from triton_taylorseer_client import InvalidArgument

Pixels = npt.NDArray[np.uint8]


def pictures_of(name: str, images: torch.Tensor) -> list[Pixels]:
    """The pictures of an IMAGE, each (H, W, 3) uint8, or (H, W, 4) with alpha.

    Args:
        name: of the input, for the message.
        images: (B, H, W, C) of 0 to 1, C 1, 3 or 4; what is beyond 0 and 1 is cut off.

    Raises:
        InvalidArgument: it is something else, has no picture, or a value that is no number.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or not images.numel():
        raise InvalidArgument(f"{name} has shape {tuple(images.shape)}, must be [B, H, W, C] with C 1, 3 or 4")
    levels = _levels(name, images)  # (B, H, W, C)
    return [np.repeat(each, 3, axis=2) if each.shape[2] == 1 else each for each in levels]


def masks_of(name: str, mask: torch.Tensor) -> list[Pixels]:
    """The masks of a MASK, each (H, W) uint8: 255 where it is 1, which is what is repainted.

    Args:
        name: of the input, for the message.
        mask: (H, W), (B, H, W), (B, 1, H, W) or (B, H, W, 1) of 0 to 1.

    Raises:
        InvalidArgument: it is something else, or marks nothing.
    """
    if mask.ndim == 4 and 1 in (mask.shape[1], mask.shape[3]):
        mask = mask.squeeze(1) if mask.shape[1] == 1 else mask.squeeze(3)  # (B, H, W)
    if mask.ndim not in (2, 3) or not mask.numel():
        raise InvalidArgument(f"{name} has shape {tuple(mask.shape)}, must be [H, W] or [B, H, W]")
    levels = _levels(name, mask.reshape(-1, *mask.shape[-2:]))  # (B, H, W)
    if not all(each.any() for each in levels):
        # ComfyUI's Load Image gives a mask of zeros for a picture without transparent parts.
        raise InvalidArgument(f"{name} marks nothing, must be above 0 where the picture is to be repainted")
    return list(levels)


def images_of(pictures: Sequence[Pixels]) -> torch.Tensor:
    """The IMAGE of pictures and videos, (B, H, W, 3) float32: each level of 0 to 255, divided by 255.

    Args:
        pictures: each (frames, H, W, 3).
    """
    return torch.from_numpy(np.concatenate(pictures).astype(np.float32) / np.float32(255))


def preview_sheet(previews: Sequence[Pixels | None]) -> Image.Image | None:
    """The previews of a batch side by side, in a grid as wide as high; None where there is none yet.

    Args:
        previews: (H, W, 3) each, None for those that have not come.
    """
    first = next((each for each in previews if each is not None), None)
    if first is None:
        return None
    columns = int(np.ceil(np.sqrt(len(previews))))
    height, width, _ = first.shape
    sheet = Image.new("RGB", (columns * width, -(-len(previews) // columns) * height))
    for place, preview in enumerate(previews):
        if preview is not None:
            sheet.paste(Image.fromarray(preview), (place % columns * width, place // columns * height))
    return sheet


def _levels(name: str, values: torch.Tensor) -> Any:
    """0 to 255, rounded to the nearest: what was a level divided by 255 is that level again."""
    numbers = values.detach().to("cpu", torch.float32)
    if not torch.isfinite(numbers).all():
        raise InvalidArgument(f"{name} has values that are no numbers, must be from 0 to 1")
    return (numbers.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
