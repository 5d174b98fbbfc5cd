"""What the endpoints that take pictures have in common: from a checked request to its answer."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from fastapi import Request, Response

from clients.openai_api.dialects import Dialect
from clients.openai_api.edge import MAX_EDIT_BYTES
from clients.openai_api.edit_fields import EditRequest
from clients.openai_api.fetching import fetched
from clients.openai_api.front import Front
from clients.openai_api.held import Share
from clients.openai_api.making import made, together
from clients.openai_api.masks import white_where_edited
from clients.openai_api.pictures import Address
from triton_taylorseer_client.messages import InvalidArgument

_Edit = TypeVar("_Edit", bound=EditRequest)

MAX_COPIES_BYTES = 128 << 20  # of the pictures of one request, which each of its n results is sent


async def edited(body: EditRequest, request: Request, front: Front, dialect: Dialect | None = None) -> Response:
    """The answer to a request for pictures made from its pictures; arguments and errors as of `made`."""
    return await made(await with_files(body, request, front), request, front, dialect)


async def with_files(body: _Edit, request: Request, front: Front) -> _Edit:
    """The request with its pictures read, and held for each of its results.

    Raises:
        InvalidArgument: there are none, one cannot be read, or they are too large.
        HTTPException: there is no room for them now.
    """
    files, mask = await _files_of(body, front, request.state.share)
    _hold_copies(body.n, sum(map(len, files)), request.state.share)
    return body.with_files(files, mask)


async def made_or_edited(body: EditRequest, request: Request, front: Front, dialect: Dialect) -> Response:
    """The same for a request that may have pictures, and may have none."""
    return await (edited if body.has_pictures else made)(body, request, front, dialect)


async def _files_of(body: EditRequest, front: Front, share: Share) -> tuple[list[bytes], bytes | None]:
    """The pictures, and the mask as the models read it."""
    pictures, given = body.given_pictures(), body.given_mask()
    masks = [] if given is None else [given]

    async def file_of(name: str, picture: bytes | Address) -> bytes:
        if isinstance(picture, bytes):
            return picture
        return await fetched(name, picture.url, front.fetch_from, share, MAX_EDIT_BYTES)

    files = await together(
        [file_of("image", each) for each in pictures] + [file_of("mask", each) for each in masks],
    )
    if not masks:
        return files, None
    async with front.masks:
        mask = await asyncio.to_thread(white_where_edited, files.pop())
    return files, mask


def _hold_copies(n: int, size: int, share: Share) -> None:
    """Each result is a request of its own to Triton, with pictures of its own.

    Raises:
        InvalidArgument: all of them are too large.
        HTTPException: there is no room for them now.
    """
    if n * size > MAX_COPIES_BYTES:
        most = MAX_COPIES_BYTES // size
        raise InvalidArgument(f"n is {n}, must be at most {most} where the pictures have {size} bytes")
    share.take((n - 1) * size)
