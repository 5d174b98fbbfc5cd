"""Pictures that edits name by their addresses, and masks."""

from __future__ import annotations

import asyncio
import http.server
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.exceptions import HTTPException
from yarl import URL

from clients.openai_api import fetching
from clients.openai_api.fetching import Place, fetched
from clients.openai_api.held import Room, Share
from clients.openai_api.masks import white_where_edited
from tests.support.waiting import wait_for
from triton_taylorseer_client.messages import InvalidArgument

MOST = 1 << 20


def png_of(image: Image.Image, file_format: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


PICTURE = png_of(Image.new("RGB", (6, 4), "red"))


# Addresses


class Site(http.server.BaseHTTPRequestHandler):
    """What answers at each address; it notes what it is asked."""

    asked: list[tuple[str, dict[str, str]]]
    ends: threading.Event

    def do_GET(self) -> None:
        self.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        name = self.path.partition("?")[0].rpartition("/")[2]
        answers: dict[str, Callable[[], None]] = {
            "moved.png": lambda: self.answer(302, b"", Location="/pictures/star.png"),
            "gone.png": lambda: self.answer(404, PICTURE),
            "page.png": lambda: self.answer(200, b"<html>", **{"Content-Type": "image/png"}),
            "large.png": lambda: self.answer(200, PICTURE + bytes(MOST)),
            "endless.png": self.endless,
            "cookie.png": lambda: self.answer(200, PICTURE, **{"Set-Cookie": "a=b"}),
            "slow.png": lambda: self.ends.wait(20) and None,
        }
        answers.get(name, lambda: self.answer(200, PICTURE))()

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def endless(self) -> None:
        """It does not say how long it is."""
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(PICTURE + bytes(1 << 16))

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def site() -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """A site's URL, and what it was asked."""
    handler = type("OneSite", (Site,), {"asked": [], "ends": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
    finally:
        handler.ends.set()
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(address: str, *places: str, share: Share | None = None) -> bytes:
    """The picture at an address, as an edit fetches it."""
    allowed = [Place.of(each) for each in places]
    return asyncio.run(fetched("image", address, allowed, share or Share(Room()), MOST))


def test_a_picture_at_a_place_that_is_allowed_is_fetched():
    with site() as (url, asked):
        share = Share(Room())
        assert fetch(f"{url}/pictures/a/star.png?size=2", f"{url}/pictures/", share=share) == PICTURE
    assert [path for path, _ in asked] == ["/pictures/a/star.png?size=2"]
    assert share.held == len(PICTURE)


def test_it_is_fetched_without_credentials_cookies_or_proxies(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with site() as (url, asked):
        for _ in range(2):
            fetch(f"{url}/cookie.png", f"{url}/")
    assert [{"authorization", "cookie", "referer"} & set(headers) for _, headers in asked] == [set(), set()]
    assert asked[0][1]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("http://h.example/pictures/", "https://h.example/pictures/a.png"),
        ("http://h.example/pictures/", "http://h.example:81/pictures/a.png"),
        ("http://h.example/pictures/", "http://h.example.evil/pictures/a.png"),
        ("http://h.example/pictures/", "http://h.example/pictures"),
        ("http://h.example/pictures/", "http://h.example/picturesque/a.png"),
        ("http://h.example/pictures/", "http://h.example/pictures/../a.png"),
        ("http://h.example/pictures/", "http://h.example/pictures/%2e%2e/a.png"),
        ("http://h.example/pictures/", "http://h.example/pictures/..%2fa.png"),
        ("http://h.example/pictures/", "http://h.example/pictures/..%5ca.png"),
        ("http://h.example/pictures/", "http://h.example/pictures/..;/a.png"),
        ("http://h.example/pictures/", "http://h.example/pictures%2Fa.png"),
        ("http://h.example/pictures/", "http://h.example/Pictures/a.png"),
        ("http://h.example/pictures/", "http://me:secret@h.example/pictures/a.png"),
        ("http://h.example/pictures/", "http://h.example@evil.example/pictures/a.png"),
        ("http://h.example/pictures/", "http://h.example\\@evil.example/pictures/a.png"),
        ("http://h.example/pictures/", "http://evil.example/http://h.example/pictures/a.png"),
        ("http://h.example/pictures/", "http://h.example:99999/pictures/a.png"),
        ("http://h.example/pictures/", "http:///pictures/a.png"),
        ("http://h.example/pictures/", "http://169.254.169.254/pictures/a.png"),
    ],
)
def test_addresses_elsewhere_are_not_fetched(place, address):
    with pytest.raises(InvalidArgument, match="must be base64 or a data URL: this front fetches nothing from there"):
        fetch(address, place)


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("http://h.example/", "http://h.example/a.png"),
        ("http://h.example", "http://h.example/a.png"),
        ("http://h.example:80/", "http://h.example/a.png"),
        ("https://H.example/", "https://h.EXAMPLE:443/a.png"),
        ("http://h.example/a b/", "http://h.example/a%20b/c.png"),
        ("http://h.example/a/", "http://h.example/a/b..c/d.png?x=../"),
    ],
)
def test_addresses_that_begin_with_a_place_are_there(place, address):
    assert Place.of(place).has(URL(address))


@pytest.mark.parametrize(
    "text",
    [
        "cdn.example.com/pictures/",
        "ftp://h.example/",
        "http://h.example/pictures",
        "http://me@h.example/",
        "http://h.example/?a=b",
        "http://h.example/#a",
        "http:///pictures/",
        "http://h.example:99999/",
        "",
    ],
)
def test_places_are_checked_at_the_start(text):
    with pytest.raises(ValueError, match="must be http:// or https://, a host, and a path that ends in /"):
        Place.of(text)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("moved.png", "its server answers with 302"),
        ("gone.png", "its server answers with 404"),
        ("page.png", "it is no PNG, JPEG or WebP file"),
        ("large.png", f"the request and its pictures are larger than {MOST} bytes"),
        ("endless.png", f"the request and its pictures are larger than {MOST} bytes"),
        ("slow.png", "it has not come within 0.3 s"),
    ],
)
def test_what_is_no_picture_there_is_refused(monkeypatch, name, reason):
    monkeypatch.setattr(fetching, "FETCH_S", 0.3 if name == "slow.png" else 10.0)
    with site() as (url, asked):
        with pytest.raises(InvalidArgument) as caught:
            fetch(f"{url}/{name}", f"{url}/")
        wait_for(lambda: bool(asked), "the site's own thread has seen it")
    assert str(caught.value) == f'image is "{url}/{name}", must be a picture that can be fetched: {reason}'
    assert [path for path, _ in asked] == [f"/{name}"], "no redirect is followed"


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(InvalidArgument, match="must be a picture that can be fetched: it cannot be reached"):
        fetch("http://127.0.0.1:9/a.png", "http://127.0.0.1:9/")


def test_what_is_fetched_needs_room():
    with site() as (url, _), pytest.raises(HTTPException, match="the bodies of other requests take 0 bytes"):
        fetch(f"{url}/star.png", f"{url}/", share=Share(Room(most=10)))


# Masks


def alpha_image(mode: str) -> Image.Image:
    """Transparent, half transparent and opaque from the left."""
    image = Image.new(mode.removesuffix("A") or "L", (3, 1))
    alpha = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    image.putalpha(alpha)
    return image


def grey(file: bytes) -> list[int]:
    image = Image.open(io.BytesIO(file))
    assert (image.mode, image.format) == ("L", "PNG")
    return np.asarray(image).ravel().tolist()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_turned_round(mode):
    assert grey(white_where_edited(png_of(alpha_image(mode)))) == [255, 155, 0]


def test_alpha_of_webp_too():
    assert grey(white_where_edited(png_of(alpha_image("RGBA"), "webp", lossless=True, exact=True))) == [255, 155, 0]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_that_stands_for_transparent_is_white(mode):
    image = Image.fromarray(np.array([[0, 200, 255]], np.uint8)).convert(mode)
    transparent = (200, 200, 200) if mode == "RGB" else 200
    if mode == "P":
        transparent = image.getpixel((1, 0))
    assert grey(white_where_edited(png_of(image, transparency=transparent))) == [0, 255, 0]


@pytest.mark.parametrize(("mode", "file_format"), [("L", "png"), ("1", "png"), ("RGB", "jpeg"), ("RGB", "webp")])
def test_without_alpha_it_is_handed_on(mode, file_format):
    file = png_of(Image.new(mode, (6, 4)), file_format)
    assert white_where_edited(file) is file


def test_a_mask_is_turned_upright_as_pictures_are():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(white_where_edited(png_of(alpha_image("RGBA"), exif=exif))))
    assert image.size == (1, 3)
    assert np.asarray(image).ravel().tolist() == [255, 155, 0]


def header_of(width: int, height: int) -> bytes:
    """A PNG that is not there beyond its header."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7_072, 10_000, 30_000])
def test_a_mask_of_too_many_pixels_is_not_read(side):
    began = time.monotonic()
    with pytest.raises(InvalidArgument, match="mask is too large, must have at most 50000000 pixels"):
        white_where_edited(header_of(side, side))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "file",
    [b"", b"no picture", png_of(alpha_image("RGBA"))[:-30], png_of(Image.new("L", (2, 2)), "bmp"), header_of(9, 9)],
)
def test_what_is_no_mask_is_refused(file):
    with pytest.raises(InvalidArgument, match="mask is no picture, must be a PNG, JPEG or WebP file"):
        white_where_edited(file)
