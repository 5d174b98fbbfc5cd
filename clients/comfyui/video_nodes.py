"""The nodes that make videos; ComfyUI's Create Video makes a VIDEO of their frames and fps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .checks import check, fields_of
from .connection import SERVER, Connection
from .limits import WIDE
from .making import make, records_of
from .node import Checked, Inputs
from .pixels import images_of, pictures_of
from .widgets import (
    cache_input,
    frames,
    frames_of_video,
    picture,
    sampling,
    size,
    size_of_picture,
    texts,
)


class TextToVideo(Checked):
    """Makes a video from a prompt."""

    DESCRIPTION = "Makes a video from a prompt on a server: its frames, and how many of them a second has."
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("frames", "fps", "report")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        limits = cls.known.published().widgets(of_videos=True)
        return {
            "required": {
                "server": (SERVER, {"forceInput": True}),
                **texts(),
                **sampling(limits),
                **size(limits),
                **frames(limits),
            },
            "optional": cache_input(),
        }

    def make(
        self, server: Connection, cache: Mapping[str, Any] | None = None, **values: Any
    ) -> tuple[torch.Tensor, float, str]:
        return _made(server, {**fields_of(values), **(cache or {})})


class ImageToVideo(Checked):
    """Makes a video from its first frame, its first and last, or another video."""

    DESCRIPTION = (
        "Makes a video that begins with a picture, or ends with another; models that change videos take the frames of "
        "one as a batch."
    )
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("frames", "fps", "report")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        published = cls.known.published()
        limits = published.widgets(of_videos=True)
        return {
            "required": {
                "server": (SERVER, {"forceInput": True}),
                **picture("image", "The first frame, or all frames of a video as a batch."),
                **texts(),
                **sampling(limits),
                "strength": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "How much of a video changes, for models that change one. 0: the model's own.",
                    },
                ),
                **size_of_picture(limits),
                **frames_of_video(limits),
            },
            "optional": {
                **picture("last_image", "The last frame, for models that take one."),
                **cache_input(),
            },
        }

    def make(
        self,
        server: Connection,
        image: torch.Tensor,
        last_image: torch.Tensor | None = None,
        cache: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> tuple[torch.Tensor, float, str]:
        pictures = pictures_of("image", image)
        if last_image is not None:
            pictures += pictures_of("last_image", last_image)
        return _made(server, {**fields_of(values), **(cache or {}), "input_image": pictures})


def _made(server: Connection, fields: Mapping[str, Any]) -> tuple[torch.Tensor, float, str]:
    check(fields, WIDE)
    made = make(server, [fields])
    return images_of([made[0].image]), float(made[0].record["report"]["fps"]), records_of(made)
