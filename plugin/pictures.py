"""Picture files that come with a request: what their heads say, and their pixels, each once it is needed.

A head is read when a request arrives, because size and memory of its result follow from it. The rest is read when the
request runs, in its own thread.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageSequence, UnidentifiedImageError, WebPImagePlugin

from plugin.errors import InvalidRequest, shortened
from plugin.limits import Limits

_FORMATS = ("PNG", "JPEG", WebPImagePlugin.WebPImageFile.format)
_MOST_SCANS = 200  # of a progressive JPEG, each of which is a pass over the whole picture; cameras write about ten
_PIXEL_BYTES = 16  # of a picture in Pillow's memory, with what conversions hold beside it for a moment
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """One picture file, of which only the head has been read.

    Attributes:
        name: of the field it came in, for messages.
        file: the bytes.
        width, height: pixels, as it stands upright.
        frames: of an animation; 1 for a still picture.
        orientation: of the pixels in the file, EXIF's number; 1 for upright.
    """

    name: str
    file: bytes = field(repr=False)
    width: int
    height: int
    frames: int = 1
    orientation: int = 1

    @classmethod
    def of(cls, name: str, file: bytes, limits: Limits) -> Picture:
        """The picture in a file.

        Args:
            name: of the field.
            file: PNG, JPEG or WebP.
            limits: of the model.

        Raises:
            InvalidRequest: it is no such file, damaged at its head, or larger than the model allows.
        """
        most = limits.max_picture_pixels
        with _read_errors(name, most):
            image = _opened(file)
            # Of the class Image: that of PNG files decodes the whole picture to look for EXIF data behind it.
            orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        width, height = image.size
        if not 0 < width * height * frames <= most:
            of_frames = f" and {frames} frames" if frames > 1 else ""
            raise InvalidRequest(f"{name} has {width} x {height} pixels{of_frames}, must have at most {most} in all")
        if image.format in ("JPEG", "MPO") and (scans := file.count(b"\xff\xda")) > _MOST_SCANS:
            raise InvalidRequest(f"{name} has {scans} scans, must have at most {_MOST_SCANS}")
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        return cls(name, file, width, height, frames, orientation if orientation in _UPRIGHT else 1)

    @property
    def decoded_bytes(self) -> int:
        """About what its pixels need while they are decoded."""
        return self.width * self.height * self.frames * _PIXEL_BYTES

    def decode(self) -> Image.Image:
        """The picture, upright, in RGB: colours converted to sRGB, transparent parts on white.

        Raises:
            InvalidRequest: the file is damaged.
        """
        with _read_errors(self.name):
            return self._rgb(_opened(self.file))

    def decode_frames(self, most: int) -> list[Image.Image]:
        """The first frames of an animation, at most that many, each as `decode` returns it."""
        with _read_errors(self.name):
            return [self._rgb(frame) for frame in islice(ImageSequence.Iterator(_opened(self.file)), most)]

    def decode_mask(self) -> Image.Image:
        """The picture, upright, in grey (mode L): transparent parts on black.

        Raises:
            InvalidRequest: the file is damaged.
        """
        with _read_errors(self.name):
            image = self._upright(_opened(self.file))
            return _on(image, "black").convert("L") if image.has_transparency_data else image.convert("L")

    def _rgb(self, image: Image.Image) -> Image.Image:
        profile = image.info.get("icc_profile")
        image = self._upright(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
        if profile:
            image = _in_srgb(image, profile)
        return _on(image, "white") if image.mode == "RGBA" else image.convert("RGB")

    def _upright(self, image: Image.Image) -> Image.Image:
        image.load()
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
        turn = _UPRIGHT.get(self.orientation)
        return image if turn is None else image.transpose(turn)


def stitched(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side, each at the height of the first, in RGB."""
    sizes = [each.size for each in pictures]
    whole = Image.new("RGB", stitched_size(sizes))
    left = 0
    for each, width in zip(pictures, _widths(sizes), strict=True):
        whole.paste(each.resize((width, whole.height)), (left, 0))
        left += width
    return whole


def stitched_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """(width, height) of what `stitched` makes of pictures of these sizes."""
    return sum(_widths(sizes)), sizes[0][1]


def _widths(sizes: list[tuple[int, int]]) -> list[int]:
    """Of pictures of these sizes, each at the height of the first."""
    height = sizes[0][1]
    return [max(1, round(width * height / own_height)) for width, own_height in sizes]


def _opened(file: bytes) -> Any:
    return Image.open(io.BytesIO(file), formats=_FORMATS)


@contextmanager
def _read_errors(name: str, most_pixels: int = 0) -> Iterator[None]:
    """Whatever Pillow raises over a file is the file's fault, and is said in one sentence."""
    try:
        yield
    except UnidentifiedImageError:
        raise InvalidRequest(f"{name} is no picture, must be a PNG, JPEG or WebP file") from None
    except Image.DecompressionBombError as error:  # far above any limit of ours
        raise InvalidRequest(f"{name} must have at most {most_pixels} pixels in all: {error}") from None
    except Exception as error:
        reason = shortened(str(error) or type(error).__name__, 200)
        raise InvalidRequest(f"{name} cannot be read, must be a whole picture: {reason}") from None


def _on(image: Image.Image, colour: str) -> Image.Image:
    """A picture without its transparency: what is transparent lies on a colour."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture with its colours converted; left as it is where its profile is sRGB, damaged, or of other colours."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        opaque = image.convert("RGB") if image.mode in ("RGBA", "P") else image
        converted = ImageCms.profileToProfile(opaque, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    assert converted is not None, "it converts into a new picture"
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted
