"""Pictures at addresses: fetched from the places that this front was told, and from nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from yarl import URL

from clients.openai_api.held import Share
from triton_taylorseer_client.messages import InvalidArgument

FETCH_S = 10.0
_HEADERS = {"Accept": "image/png, image/jpeg, image/webp", "Accept-Encoding": "identity"}
_PICTURE = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
_UPWARDS = re.compile(r"(^|[/\\])\.\.?(;|[/\\]|$)")  # a server may read these as steps to another folder


@dataclass(frozen=True)
class Place:
    """What addresses must begin with."""

    start: URL

    @classmethod
    def of(cls, text: str) -> Place:
        """The place that a URL names.

        Raises:
            ValueError: it is no such URL.
        """
        start = _parsed(text)
        if start is None or start.raw_query_string or start.raw_fragment or not start.raw_path.endswith("/"):
            raise ValueError(f"fetch_from is {text}, must be http:// or https://, a host, and a path that ends in /")
        return cls(start)

    def has(self, url: URL) -> bool:
        """Whether scheme, host and port are this place's, and the path begins with its own."""
        same_server = (url.scheme, url.host, url.port) == (self.start.scheme, self.start.host, self.start.port)
        return same_server and url.raw_path.startswith(self.start.raw_path) and not _UPWARDS.search(url.path)


async def fetched(name: str, address: str, places: Sequence[Place], share: Share, most: int) -> bytes:
    """The picture at an address.

    Args:
        name: of the field, for messages.
        address: as the client sent it.
        places: where this front may fetch from.
        share: what the request holds; the picture is added to it.
        most: bytes that it may hold then.

    Raises:
        InvalidArgument: it is at no such place, cannot be had within `FETCH_S`, is no picture, or is too large.
        HTTPException: there is no room for it now.
    """
    shown, url = json.dumps(address[:100]), _parsed(address)
    if url is None or not any(place.has(url) for place in places):
        raise InvalidArgument(f"{name} is {shown}, must be base64 or a data URL: this front fetches nothing from there")
    try:
        return await _picture_at(url, share, most)
    except TimeoutError:
        reason = f"it has not come within {FETCH_S:g} s"
    except (aiohttp.ClientError, OSError):
        reason = "it cannot be reached"
    except ValueError as error:
        reason = str(error)
    raise InvalidArgument(f"{name} is {shown}, must be a picture that can be fetched: {reason}")


async def _picture_at(url: URL, share: Share, most: int) -> bytes:
    async with (
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=FETCH_S), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as session,
        session.get(url, headers=_HEADERS, allow_redirects=False) as answer,
    ):
        if answer.status != 200:
            raise ValueError(f"its server answers with {answer.status}")
        file = bytearray()
        async for part in answer.content.iter_any():
            share.take(len(part))
            if share.held > most:
                raise ValueError(f"the request and its pictures are larger than {most} bytes")
            file += part
    if not _PICTURE.match(file):
        raise ValueError("it is no PNG, JPEG or WebP file")
    return bytes(file)


def _parsed(text: str) -> URL | None:
    """The URL of HTTP without user and password in a text, or None."""
    try:
        url = URL(text)
    except ValueError:
        return None
    plain = url.scheme in ("http", "https") and url.host is not None and url.user is None and url.password is None
    return url if plain else None
