"""Picture files as strangers send them: read right, or refused in one sentence, without much memory or time."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from plugin.errors import InvalidRequest
from plugin.limits import Limits
from plugin.pictures import Picture, stitched, stitched_size

LIMITS = Limits()


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(file: bytes, limits: Limits = LIMITS) -> Image.Image:
    return Picture.of("input_image", file, limits).decode()


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """Red grows to the right, green downwards; blue is even."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=-1).astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pixels_are_those_of_the_file(kind):
    assert np.array_equal(np.asarray(read(file_of(gradient(), kind, lossless=True))), np.asarray(gradient()))


def test_a_jpeg_is_what_pillow_reads():
    file = file_of(gradient(), "JPEG")
    assert np.array_equal(np.asarray(read(file)), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_stands_upright_as_its_exif_data_says(kind, orientation):
    """Against Pillow's own `exif_transpose`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = file_of(gradient(), kind, exif=exif)
    picture = Picture.of("input_image", file, LIMITS)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
    assert (picture.width, picture.height) == expected.size
    assert np.array_equal(np.asarray(picture.decode()), np.asarray(expected))
    assert picture.decode_mask().size == expected.size


def test_transparent_parts_lie_on_white_and_those_of_masks_on_black():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:2, :, 3] = 255
    file = file_of(Image.fromarray(pixels, "RGBA"))
    assert np.asarray(read(file))[3, 0].tolist() == [255, 255, 255]
    assert np.asarray(read(file))[0, 0].tolist() == [200, 0, 0]
    mask = np.asarray(Picture.of("mask_image", file, LIMITS).decode_mask())
    assert mask.shape == (4, 4)
    assert mask[3, 0] == 0
    assert mask[0, 0] > 0


def test_a_palette_with_a_transparent_colour_lies_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 2, 4))
    pixels = np.asarray(read(file_of(image, transparency=0)))
    assert pixels[0, 0].tolist() == [200, 100, 50]
    assert pixels[0, 3].tolist() == [255, 255, 255]


def test_grey_of_16_bits_keeps_its_shades():
    """Pillow alone would cut all above 255 off to white."""
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = np.asarray(read(file_of(Image.fromarray(values))))
    assert np.array_equal(pixels[..., 0], (values >> 8).astype(np.uint8))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = read(file_of(gradient().convert(mode), kind))
    assert image.mode == "RGB"
    assert image.size == (48, 32)


def test_cmyk_keeps_its_colours():
    """JPEG's own loss, and Pillow's simple conversion there and back: ten levels."""
    difference = np.asarray(read(file_of(gradient().convert("CMYK"), "JPEG", quality=100))).astype(int)
    assert np.abs(difference - np.asarray(gradient())).max() <= 10


def test_colours_are_converted_by_the_profile():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    swapped = wide_profile()
    plain, converted = read(file_of(gradient())), read(file_of(gradient(), icc_profile=swapped))
    assert not np.array_equal(np.asarray(plain), np.asarray(converted))
    expected = ImageCms.profileToProfile(
        gradient(), ImageCms.ImageCmsProfile(io.BytesIO(swapped)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert np.array_equal(np.asarray(converted), np.asarray(expected))
    assert np.array_equal(np.asarray(read(file_of(gradient(), icc_profile=profile.tobytes()))), np.asarray(plain))


def wide_profile() -> bytes:
    """sRGB's profile with red and blue exchanged, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    table = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(profile[131])}
    red, blue = table[b"rXYZ"] + 4, table[b"bXYZ"] + 4
    profile[red : red + 8], profile[blue : blue + 8] = profile[blue : blue + 8], profile[red : red + 8]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))


def test_the_profile_srgb_and_a_damaged_one_change_no_pixel():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", srgb[:200]):
        assert np.array_equal(np.asarray(read(file_of(gradient(), icc_profile=profile))), np.asarray(gradient()))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "is no picture, must be a PNG, JPEG or WebP file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no picture"),
        (file_of(gradient(), "GIF"), "is no picture"),
        (file_of(gradient(), "BMP"), "is no picture"),
        (file_of(gradient(), "TIFF"), "is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is no picture"),
        (b"\x89PNG\r\n\x1a\n", "is no picture"),
        (
            png_that_claims(50_000, 50_000),
            r"must have at most 50000000 pixels in all: Image size \(2500000000 pixels\)",
        ),
        (png_that_claims(8000, 8000), "has 8000 x 8000 pixels, must have at most 50000000 in all"),
        (png_that_claims(0, 10), "has 0 x 10 pixels|is no picture"),
    ],
    ids=["empty", "svg", "gif", "bmp", "tiff", "postscript", "head alone", "bomb", "large", "no width"],
)
def test_what_is_no_picture_that_may_be_read_is_refused_by_its_head(file, message):
    with pytest.raises(InvalidRequest, match=rf"^input_image ({message})"):
        Picture.of("input_image", file, LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_refused(kind):
    file = file_of(gradient(256, 256), kind)
    with pytest.raises(InvalidRequest, match=r"^input_image (cannot be read, must be a whole picture|is no picture)"):
        read(file[: len(file) // 2])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_frames_of_an_animation_are_counted_and_read(kind):
    frames = [gradient().transpose(turn) for turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180)]
    file = file_of(gradient(), kind, save_all=True, append_images=frames, lossless=True)
    picture = Picture.of("input_image", file, LIMITS)
    assert picture.frames == 3
    decoded = picture.decode_frames(2)
    assert len(decoded) == 2
    for got, expected in zip(decoded, [gradient(), *frames], strict=False):
        assert np.array_equal(np.asarray(got), np.asarray(expected))


def test_all_frames_of_an_animation_count_against_the_pixels():
    frames = [Image.new("RGB", (64, 64), (12 * i, 0, 255 - 12 * i)) for i in range(20)]
    file = file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(InvalidRequest, match="has 64 x 64 pixels and 20 frames, must have at most 80000 in all"):
        Picture.of("input_image", file, Limits(max_picture_pixels=80_000))


def test_a_jpeg_of_endless_scans_is_refused():
    """Each scan is a pass over all pixels: thousands would take minutes."""
    file = file_of(gradient(), "JPEG", progressive=True)
    scan = file[file.index(b"\xff\xda") : file.index(b"\xff\xda", file.index(b"\xff\xda") + 2)]
    bomb = file[:-2] + scan * 5000 + file[-2:]
    began = time.perf_counter()
    with pytest.raises(InvalidRequest, match=r"input_image has 50\d\d scans, must have at most 200"):
        Picture.of("input_image", bomb, LIMITS)
    assert time.perf_counter() - began < 0.5


def test_what_follows_a_picture_in_its_file_is_not_read():
    file = file_of(gradient(), lossless=True) + b"PK\x03\x04<script>alert(1)</script>"
    assert np.array_equal(np.asarray(read(file)), np.asarray(gradient()))


def test_the_format_is_that_of_the_bytes():
    """A wrong suffix or media type means nothing: no name comes with the bytes."""
    assert read(file_of(gradient(), "WEBP", lossless=True)).size == (48, 32)


@pytest.mark.parametrize("side", [50_000, 7000])
def test_a_head_costs_no_memory(side):
    file = png_that_claims(side, side)
    tracemalloc.start()
    with suppress(InvalidRequest):
        Picture.of("input_image", file, LIMITS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


def test_text_that_unpacks_to_gigabytes_is_refused():
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20)))
    plain = file_of(gradient())
    file = plain[:33] + text + plain[33:]
    with pytest.raises(InvalidRequest, match=r"^input_image (is no picture|cannot be read)"):
        read(file)


_WHOLE = {kind: file_of(gradient(), kind) for kind in ("PNG", "JPEG", "WEBP")}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(_WHOLE)),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    st.integers(0, 4000),
    st.binary(max_size=40),
)
def test_a_file_with_any_bytes_changed_is_a_picture_or_refused(kind, changes, cut, tail):
    data = bytearray(_WHOLE[kind])
    for place, value in changes:
        data[place % len(data)] = value
    file = bytes(data[: max(1, len(data) - cut)]) + tail
    try:
        picture = Picture.of("input_image", file, LIMITS)
        image, mask = picture.decode(), picture.decode_mask()
    except InvalidRequest as refusal:
        said = str(refusal)
    else:
        said = "input_image "
        assert (image.mode, mask.mode) == ("RGB", "L")
        assert image.size == mask.size == (picture.width, picture.height)
    assert said.startswith("input_image ")
    assert len(said) < 400


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_picture_or_refused(data):
    for prefix in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBPVP8 "):
        with pytest.raises(InvalidRequest, match=r"^input_image "):
            read(prefix + data)


def test_pictures_are_stitched_at_the_height_of_the_first():
    one, other = gradient(48, 32), gradient(30, 64)
    whole = stitched([one, other])
    assert whole.size == stitched_size([one.size, other.size]) == (48 + 15, 32)
    assert np.array_equal(np.asarray(whole)[:, :48], np.asarray(one))
