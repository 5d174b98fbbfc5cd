"""Pictures of a request: whatever Python has them in, the server gets files, in order."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from tests.support.fake_triton import Call, Picture, fake_triton
from triton_taylorseer_client import AsyncClient, InvalidArgument
from triton_taylorseer_client.fields import request_inputs
from triton_taylorseer_client.pictures import MOST_PICTURES, picture_files

FILE = b"\x89PNG, as a camera or a program wrote it"  # its content is the server's to judge
GREYS = np.stack([np.full((48, 64, 3), 30 * step, np.uint8) for step in range(7)])
RGB = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def pixels(file: bytes) -> np.ndarray:
    """What a PNG holds."""
    image = Image.open(io.BytesIO(file))
    assert image.format == "PNG"
    return np.asarray(image)


def mp4(frames: np.ndarray = GREYS) -> bytes:
    return imageio.imwrite("<bytes>", frames, extension=".mp4", plugin="pyav", codec="libx264", fps=8)


def gif(path: Path, frames: np.ndarray = GREYS) -> Path:
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others)
    return path


def refusal(name: str, value: object) -> str:
    with pytest.raises(InvalidArgument) as caught:
        picture_files(name, value)
    assert str(caught.value).startswith(f"{name} ")
    assert len(str(caught.value)) < 400
    return str(caught.value)


# Files


def test_files_are_sent_as_they_are(tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(FILE)
    url = f"data:image/png;base64,{base64.b64encode(FILE).decode()}"
    for value in (path, str(path), FILE, bytearray(FILE), memoryview(FILE), url, f"\n{url[:40]}\n {url[40:]}\n"):
        assert picture_files("input_image", value) == [FILE]
        assert picture_files("mask_image", [value]) == [FILE]


def test_several_pictures_keep_their_order(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"first")
    files = picture_files("input_image", (tmp_path / "a.png", b"second", RGB, b"last"))
    assert [*files[:2], files[3]] == [b"first", b"second", b"last"]
    assert np.array_equal(pixels(files[2]), RGB)


def test_a_tensor_has_one_element_for_each_file():
    image, mask, strength = request_inputs(input_image=[b"one", b"three"], mask_image=b"two\0", strength=0.5)
    assert (image.name(), image.datatype(), image.shape()) == ("input_image", "BYTES", [2])
    assert image._get_content() == b"\3\0\0\0one\5\0\0\0three"
    assert (mask.name(), mask.datatype(), mask.shape()) == ("mask_image", "BYTES", [1])
    assert mask._get_content() == b"\4\0\0\0two\0"
    assert np.frombuffer(strength._get_content(), "<f4") == [0.5]


# Images and arrays


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_images_are_sent_as_png_with_their_pixels(mode: str):
    image = Image.fromarray(RGB).convert(mode)
    (file,) = picture_files("input_image", image)
    sent = Image.open(io.BytesIO(file))
    assert (sent.format, sent.mode) == ("PNG", mode)
    assert np.array_equal(np.asarray(sent.convert("RGBA")), np.asarray(image.convert("RGBA")))


def test_a_photograph_stands_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: the file is to be turned by a quarter, clockwise
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as photograph:
        (file,) = picture_files("input_image", photograph)
    assert np.array_equal(pixels(file), np.rot90(RGB, -1))
    assert not Image.open(io.BytesIO(file)).getexif(), "else it would be turned again"


@pytest.mark.parametrize("name", MOST_PICTURES)
@pytest.mark.parametrize(
    "array",
    [
        RGB,
        RGB[:, :, 0],
        np.dstack([RGB, RGB[:, :, :1]]),
        RGB[::-1, ::2],  # a view
        np.asfortranarray(RGB),
        np.zeros((1, 1), np.uint8),
    ],
    ids=["rgb", "grey", "rgba", "view", "fortran", "one pixel"],
)
def test_arrays_are_sent_as_png_with_their_values(name: str, array: np.ndarray):
    (file,) = picture_files(name, array)
    assert np.array_equal(pixels(file), array)


def test_true_is_white_in_a_mask():
    mask = np.zeros((4, 6), bool)
    mask[1, 2:] = True
    (file,) = picture_files("mask_image", mask)
    assert np.array_equal(pixels(file), np.where(mask, 255, 0))


# Videos


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".MP4"])
def test_a_video_stands_for_its_frames(tmp_path: Path, suffix: str):
    path = tmp_path / f"greys{suffix}"
    path.write_bytes(mp4())
    frames = np.stack([*map(pixels, picture_files("input_image", path))])
    assert frames.shape == GREYS.shape
    assert np.abs(frames.astype(int) - GREYS).max() <= 4, "H.264 of flat greys loses a few levels at most"
    assert len(picture_files("input_image", [b"first", path, b"last"])) == 9


def test_webm_is_a_video_too(tmp_path: Path):
    path = tmp_path / "greys.webm"
    path.write_bytes(imageio.imwrite("<bytes>", GREYS, extension=".webm", plugin="pyav", codec="libvpx-vp9", fps=8))
    assert [pixels(file).shape for file in picture_files("input_image", path)] == [(48, 64, 3)] * 7


def test_a_gif_stands_for_its_frames_also_if_it_has_one(tmp_path: Path):
    frames = [*map(pixels, picture_files("input_image", gif(tmp_path / "greys.gif")))]
    assert np.abs(np.stack(frames).astype(int) - GREYS).max() <= 2, "a palette of 256 colours, between YUV and RGB"
    (still,) = picture_files("mask_image", gif(tmp_path / "grey.gif", GREYS[3:4]))
    assert np.abs(pixels(still).astype(int) - GREYS[3]).max() <= 2


@pytest.mark.parametrize(("degrees", "quarters"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_the_video_of_a_telephone_stands_upright(tmp_path: Path, degrees: int, quarters: int):
    """The frames lie as the camera does; the track's matrix says how they are to be turned, clockwise."""
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :16, :, 0] = 255  # red at the top
    frames[:, :, :16, 2] = 255  # blue at the left
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    written = mp4(frames)
    start = written.index(b"tkhd") + 44  # ISO 14496-12, 8.3.2
    path = tmp_path / "a.mp4"
    path.write_bytes(written[:start] + matrix + written[start + len(matrix) :])
    turned = pixels(picture_files("input_image", path)[0])
    expected = np.rot90(frames[0], quarters)
    assert turned.shape == expected.shape
    # At edges of colours H.264 may be far off: colours have half of the resolution.
    assert np.abs(turned.astype(int) - expected).mean() < 8


def test_a_video_has_no_more_frames_than_the_field_takes(tmp_path: Path):
    frames = np.zeros((1001, 4, 4, 3), np.uint8)
    frames[::2] = 255  # Pillow writes frames that are equal as one
    longest = gif(tmp_path / "longest.gif", frames[:1000])
    assert len(picture_files("input_image", longest)) == 1000
    too_many = "input_image has 1001 or more pictures, must have from 1 to 1000"
    assert refusal("input_image", gif(tmp_path / "longer.gif", frames)) == too_many
    assert refusal("input_image", [b"one", longest]) == too_many


def audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def test_what_is_no_video_is_told(tmp_path: Path):
    assert "must be a video that can be read (it has no video)" in refusal("input_image", audio(tmp_path / "a.mp4"))
    for number, content in enumerate((b"", b"\0" * 1000, b"a text", mp4()[:1000])):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(content)
        assert f"input_image is {str(path)!r}, must be a video that can be read (" in refusal("input_image", path)


# What is refused


@pytest.mark.parametrize("name", MOST_PICTURES)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, name: str):
    missing = f"{name} is 'no/such/a.png', must be a file that can be read (No such file or directory)"
    assert refusal(name, "no/such/a.png") == missing
    assert refusal(name, Path("no/such/a.png")) == missing
    assert "must be a video that can be read (No such file or directory)" in refusal(name, "no/such/a.mp4")
    assert "must be a file that can be read (Is a directory)" in refusal(name, tmp_path)
    assert "must be a file that can be read (embedded null byte)" in refusal(name, "a\0.png")
    # What somebody took for a path: base64 without the beginning of a data URL
    assert "must be a file that can be read (File name too long)" in refusal(name, "iVBORw0KGgo" * 1000)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("input_image", [], "input_image has 0 pictures, must have from 1 to 1000"),
        ("mask_image", (), "mask_image has 0 pictures, must have 1"),
        ("mask_image", [b"one", b"two", b"three"], "mask_image has 2 or more pictures, must have 1"),
        ("input_image", [b""] * 1001, "input_image has 1001 or more pictures, must have from 1 to 1000"),
        (
            "input_image",
            5,
            "input_image is 5, must be a path, bytes, a data URL, a Pillow image or an array, or a list of them",
        ),
        (
            "mask_image",
            {"a": 1},
            "mask_image is {'a': 1}, must be a path, bytes, a data URL, a Pillow image or an array",
        ),
        ("input_image", [[b"nested"]], "input_image is [b'nested'], must be a path, bytes, a data URL, "),
        ("input_image", [b"one", None], "input_image is None, must be a path, bytes, a data URL, "),
        ("input_image", "data:image/png;base64,a", "input_image is 'data:image/png;base64,a', must be a data URL in "),
        ("input_image", "data:image/png;base64,ä", "must be a data URL in base64"),
        ("input_image", "data:image/svg+xml,<svg/>", "must be a data URL in base64"),
        (
            "input_image",
            Image.new("CMYK", (2, 2)),
            "input_image is an image of mode CMYK, must be one of mode 1, L, LA, P, RGB, RGBA",
        ),
        ("input_image", Image.new("F", (2, 2)), "input_image is an image of mode F, must be one of mode "),
        ("input_image", Image.new("RGB", (0, 2)), "input_image is an image of 0 x 2 pixels, must be one that can be "),
    ],
)
def test_another_value_is_named_with_what_it_must_be(name: str, value: object, sentence: str):
    assert refusal(name, value).startswith(sentence) or sentence in refusal(name, value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 6, 3), np.float32),
        np.zeros((4, 6, 3), np.int64),
        np.zeros((4, 6, 2), np.uint8),
        np.zeros((1, 4, 6, 3), np.uint8),
        np.zeros(6, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 6, 3), np.uint8),
        np.zeros((4, 6, 3), bool),
    ],
    ids=["float", "int64", "two channels", "frames", "row", "scalar", "empty", "bool of colours"],
)
@pytest.mark.parametrize("name", MOST_PICTURES)
def test_an_array_of_another_shape_or_dtype_is_refused(name: str, array: np.ndarray):
    sentence = refusal(name, array)
    assert (
        f"{name} is an array, {array.dtype} of shape {array.shape}, must be uint8 of shape (height, width), "
        in sentence
    )
    assert ("or bool of shape (height, width)" in sentence) == (name == "mask_image")


def test_a_bool_array_is_no_picture():
    assert "bool of shape (4, 6), must be uint8" in refusal("input_image", np.ones((4, 6), bool))


def test_a_damaged_image_is_told(tmp_path: Path):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, format="png")
    damaged = Image.open(io.BytesIO(file.getvalue()[:2000]))
    sentence = "input_image is an image of 64 x 64 pixels, must be one that can be written as PNG (image file is trunc"
    assert refusal("input_image", damaged).startswith(sentence)


# Beside other requests


def test_other_requests_of_the_loop_go_on_while_a_picture_is_read(tmp_path: Path):
    pipe = tmp_path / "slow.png"
    os.mkfifo(pipe)

    def behaviour(call: Call) -> Iterator[Any]:
        yield Picture({"files": [file.decode() for file in call.fields["input_image"]]})

    async def ticks_until_it_is_made(url: str) -> tuple[int, dict[str, Any]]:
        async with AsyncClient(url) as client:

            async def made() -> dict[str, Any]:
                *_, result = [update async for update in client.stream(input_image=pipe)]
                return result.report

            making, ticks = asyncio.ensure_future(made()), 0
            while not making.done():
                await asyncio.sleep(0.01)
                ticks += 1
            return ticks, making.result()

    writer = threading.Timer(1.0, lambda: pipe.write_bytes(b"at last"))
    writer.start()
    with fake_triton(behaviour) as url:
        ticks, report = asyncio.run(ticks_until_it_is_made(url))
    writer.join()
    assert report == {"files": ["at last"]}
    assert ticks > 10, "a loop that waits for the file has one or two"
