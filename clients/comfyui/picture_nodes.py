"""The nodes that make pictures: from text, from pictures, and under a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from triton_taylorseer_client import InvalidArgument

from .checks import MAX_SEED, check, fields_of
from .connection import SERVER, Connection
from .limits import WIDE
from .making import make, records_of
from .node import Checked, Inputs
from .pixels import Pixels, images_of, masks_of, pictures_of
from .widgets import (
    Input,
    batch,
    cache_input,
    class_label,
    picture,
    sampling,
    size,
    size_of_picture,
    strength,
    texts,
)

_FURTHER = ("image_2", "image_3", "image_4")


class TextToImage(Checked):
    """Makes pictures from a prompt."""

    DESCRIPTION = "Makes pictures from a prompt on a server."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "report")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        limits = cls.known.published().widgets()
        return {
            "required": {
                "server": (SERVER, {"forceInput": True}),
                **texts(),
                **sampling(limits),
                **size(limits),
                **batch(),
            },
            "optional": {**cache_input(), **class_label(limits)},
        }

    def make(
        self, server: Connection, batch_size: int, cache: Mapping[str, Any] | None = None, **values: Any
    ) -> tuple[torch.Tensor, str]:
        return _made(server, {**fields_of(values), **(cache or {})}, [{}], batch_size)


class ImageToImage(Checked):
    """Makes pictures from pictures."""

    DESCRIPTION = (
        "Changes each picture of a batch. Models that take several pictures for one result get the further ones from "
        "the other sockets."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "report")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        published = cls.known.published()
        limits = published.widgets()
        return {
            "required": {
                "server": (SERVER, {"forceInput": True}),
                **picture("image", "The pictures to start from, each for results of its own."),
                **cls._mask(),
                **texts(),
                **sampling(limits),
                **strength(published),
                **size_of_picture(limits),
                **batch(),
            },
            "optional": {
                **{name: ("IMAGE", {"tooltip": "A further picture for the same result."}) for name in _FURTHER},
                **cache_input(),
            },
        }

    def make(
        self,
        server: Connection,
        image: torch.Tensor,
        batch_size: int,
        mask: torch.Tensor | None = None,
        cache: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> tuple[torch.Tensor, str]:
        several = {"image": pictures_of("image", image)}
        several |= {
            name: pictures_of(name, further) for name in _FURTHER if (further := values.pop(name, None)) is not None
        }
        masks = None if mask is None else masks_of("mask", mask)
        given = _pictures_of_each(several, masks)
        return _made(server, {**fields_of(values), **(cache or {})}, given, batch_size)

    @classmethod
    def _mask(cls) -> dict[str, Input]:
        return {}


class Inpaint(ImageToImage):
    """Makes pictures from pictures, under a mask."""

    DESCRIPTION = "Repaints a picture where its mask is 1 and keeps it where the mask is 0."

    @classmethod
    def _mask(cls) -> dict[str, Input]:
        return {"mask": ("MASK", {"tooltip": "1: is repainted, 0: is kept. One for all pictures, or one for each."})}


def _pictures_of_each(several: Mapping[str, Sequence[Pixels]], masks: Sequence[Pixels] | None) -> list[dict[str, Any]]:
    """The pictures and the mask of each result; an input with one alone has it for all of them.

    Raises:
        InvalidArgument: an input has another number of pictures, or a mask another size.
    """
    count = len(several["image"])
    given = []
    for name, pictures in {**several, **({} if masks is None else {"mask": masks})}.items():
        if len(pictures) not in (1, count):
            raise InvalidArgument(f"{name} has {len(pictures)} pictures, must have 1 or {count}, as image has")
    for place in range(count):
        pictures = [each[place % len(each)] for each in several.values()]
        fields: dict[str, Any] = {"input_image": pictures}
        if masks is not None:
            fields["mask_image"] = masks[place % len(masks)]
            _check_sizes(pictures[0], fields["mask_image"])
        given.append(fields)
    return given


def _check_sizes(picture: Pixels, mask: Pixels) -> None:
    (height, width), (needed_height, needed_width) = mask.shape, picture.shape[:2]
    if (height, width) != (needed_height, needed_width):
        raise InvalidArgument(f"mask is {width} x {height}, must be {needed_width} x {needed_height} as image is")


def _made(
    server: Connection, fields: Mapping[str, Any], given: Sequence[Mapping[str, Any]], batch_size: int
) -> tuple[torch.Tensor, str]:
    """The pictures for each of what is given, `batch_size` of them with one seed after the other."""
    check({**fields, "batch_size": batch_size}, WIDE)
    count = len(given) * batch_size
    if fields["seed"] > MAX_SEED - count + 1:
        raise InvalidArgument(f"seed is {fields['seed']}, must be at most {MAX_SEED - count + 1} for {count} pictures")
    requests = [
        {**fields, **given[place // batch_size], "seed": fields["seed"] + place, "num_frames": 1}
        for place in range(count)
    ]
    made = make(server, requests)
    return images_of([each.image for each in made]), records_of(made)
