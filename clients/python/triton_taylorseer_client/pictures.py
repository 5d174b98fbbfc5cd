"""The pictures of a request: from what people have in Python to the files that are sent."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from triton_taylorseer_client.messages import InvalidArgument, for_videos
from triton_taylorseer_client.shown import shown

MASK = "mask_image"
MOST_PICTURES = {"input_image": 1000, MASK: 1}  # the fields that take pictures
_VIDEOS = (".mp4", ".mov", ".webm", ".gif")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_DATA_URL = re.compile(r"\s*data:", re.IGNORECASE)
_IN_BASE64 = re.compile(r"\s*data:[^,]*;base64,", re.IGNORECASE)
_LONGEST_PATH = 255  # characters that a message shows in full; what is longer is probably no path
_QUICK = 1  # of zlib's levels: larger files than by default, in a fraction of the time


def picture_files(name: str, value: Any) -> list[bytes]:
    """The files that stand for the pictures of a field, at least one.

    Args:
        name: of the field, in `MOST_PICTURES`, which has how many pictures it takes.
        value: a picture, or a list or tuple of them. A picture is the path of a file, its bytes, a data URL in base64,
            a Pillow image, or an array: uint8 of shape (height, width), (height, width, 3) in RGB or (height, width, 4)
            in RGBA; for a mask also bool of shape (height, width). Files are sent as they are, images and arrays as
            PNG. The path of a video or an animated GIF (.mp4, .mov, .webm, .gif) stands for its frames, each a PNG.

    Raises:
        ImportError: a video needs packages that are not installed.
        InvalidArgument: it is something else, cannot be read, or has too many pictures or none.
    """
    most = MOST_PICTURES[name]
    several = value if isinstance(value, list | tuple) else [value]
    files = [*islice((file for each in several for file in _files(name, each)), most + 1)]
    if not 1 <= len(files) <= most:
        count = f"{len(files)} or more" if files else "0"
        raise InvalidArgument(f"{name} has {count} pictures, must have {'1' if most == 1 else f'from 1 to {most}'}")
    return files


def is_data_url(text: str) -> bool:
    """Whether a text is a data URL and no path."""
    return _DATA_URL.match(text) is not None


def _files(name: str, value: Any) -> Iterator[bytes]:
    """One file, or one for each frame of a video."""
    match value:
        case str() if is_data_url(value):
            yield _decoded(name, value)
        case str() | Path():
            yield from _read(name, Path(value))
        case bytes() | bytearray() | memoryview():
            yield bytes(value)
        case Image.Image():
            yield _png_of_image(name, value)
        case np.ndarray():
            yield _png_of_array(name, value)
        case _:
            several = "" if MOST_PICTURES[name] == 1 else ", or a list of them"
            raise InvalidArgument(
                f"{name} is {shown(value)}, must be a path, bytes, a data URL, a Pillow image or an array{several}"
            )


def _decoded(name: str, url: str) -> bytes:
    try:
        start = _IN_BASE64.match(url)
        if start is None:
            raise ValueError("it is not in base64")
        return base64.b64decode("".join(url[start.end() :].split()), validate=True)
    except ValueError:
        raise InvalidArgument(f"{name} is {shown(url)}, must be a data URL in base64") from None


def _read(name: str, path: Path) -> Iterator[bytes]:
    is_video = path.suffix.lower() in _VIDEOS
    try:
        with path.open("rb") as file:
            if is_video:
                yield from _frames(file)
            else:
                yield file.read()
    except (OSError, ValueError, EOFError) as error:
        kind = "video" if is_video else "file"
        reason = getattr(error, "strerror", None) or error
        place = repr(str(path)) if len(str(path)) <= _LONGEST_PATH else shown(str(path))
        raise InvalidArgument(f"{name} is {place}, must be a {kind} that can be read ({reason})") from None


def _frames(file: io.BufferedReader) -> Iterator[bytes]:
    av = for_videos("av")
    try:
        with av.open(file, "r") as container:
            if not container.streams.video:
                raise ValueError("it has no video")
            for frame in container.decode(video=0):
                # By av itself and not by imageio, which leaves the videos of telephones lying on their side.
                upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                yield _png(Image.fromarray(np.ascontiguousarray(upright)))
    except av.FFmpegError as error:
        raise ValueError(error.strerror or error) from error


def _png_of_image(name: str, image: Image.Image) -> bytes:
    if image.mode not in _MODES:
        raise InvalidArgument(f"{name} is an image of mode {image.mode}, must be one of mode {', '.join(_MODES)}")
    try:
        return _png(ImageOps.exif_transpose(image))  # a PNG of Pillow's would lie as the camera was held
    except (OSError, ValueError, SystemError) as error:
        width, height = image.size
        raise InvalidArgument(
            f"{name} is an image of {width} x {height} pixels, must be one that can be written as PNG ({error})"
        ) from None


def _png_of_array(name: str, array: npt.NDArray[Any]) -> bytes:
    is_mask = name == MASK and array.dtype == np.bool_ and array.ndim == 2
    is_picture = array.dtype == np.uint8 and array.ndim >= 2 and array.shape[2:] in ((), (3,), (4,))
    if not array.size or not (is_mask or is_picture):
        of_masks = ", or bool of shape (height, width)" if name == MASK else ""
        raise InvalidArgument(
            f"{name} is an array, {array.dtype} of shape {array.shape}, must be uint8 of shape (height, width), "
            f"(height, width, 3) or (height, width, 4){of_masks}"
        )
    return _png(Image.fromarray(array.astype(np.uint8) * 255 if is_mask else np.ascontiguousarray(array)))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="png", compress_level=_QUICK)
    return file.getvalue()
