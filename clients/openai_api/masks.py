"""Masks: OpenAI's are transparent where the picture is edited, the models' are white there."""

from __future__ import annotations

import io

from PIL import Image, ImageChops, ImageOps

from triton_taylorseer_client.messages import InvalidArgument

MAX_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG", "WEBP")


def white_where_edited(file: bytes) -> bytes:
    """A mask as the models read it.

    Args:
        file: PNG, JPEG or WebP. Its size is checked before its pixels are read.

    Returns:
        A grey PNG, 255 less the mask's alpha; the file itself where it has no alpha.

    Raises:
        InvalidArgument: it is no such file, damaged, or has more than `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(file), formats=_FORMATS) as image:
            return _converted(image, file)
    except InvalidArgument:
        raise
    except Image.DecompressionBombError:
        raise _too_large() from None
    except Exception as error:  # Pillow raises many kinds over damaged files
        raise InvalidArgument(f"mask is no picture, must be a PNG, JPEG or WebP file: {type(error).__name__}") from None


def _converted(image: Image.Image, file: bytes) -> bytes:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large()
    if not image.has_transparency_data:
        return file
    upright = ImageOps.exif_transpose(image)
    alpha = upright.convert("RGBA").getchannel("A")
    png = io.BytesIO()
    ImageChops.invert(alpha).save(png, "PNG", compress_level=1)
    return png.getvalue()


def _too_large() -> InvalidArgument:
    return InvalidArgument(f"mask is too large, must have at most {MAX_PIXELS} pixels")
