"""What all HTTP passes: request ids, headers for browsers, the largest bodies, HEAD and trailing slashes."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients.openai_api.errors import error_answer
from clients.openai_api.held import Room, Share
from clients.openai_api.metrics import Meter

MAX_BODY_BYTES = 1 << 20
MAX_EDIT_BYTES = 32 << 20  # of a body with pictures, and of one message to Triton (plugin/ops/guard/bodies.py)
_WITH_PICTURES = ("/v1/images/edits", "/v1/videos", "/v1/chat/completions", "/v1/responses", "/sdapi/v1/img2img")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # fit for headers and for logs

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; frame-ancestors 'none'"
    ),
}


class Edge:
    """Gives each request an id, and each answer headers; refuses bodies that are too large, or too many at once.

    It is plain ASGI, because Starlette's middleware class hides from an endpoint that its client has disconnected.

    Args:
        app: what answers.
        room: for the bodies of all requests.
        meter: counts the requests.
    """

    def __init__(self, app: ASGIApp, room: Room, meter: Meter) -> None:
        self._app = app
        self._room = room
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        share = Share(self._room)
        exchange = _Exchange(scope, receive, send, share)
        with self._meter.request() as counted:
            try:
                await self._app(exchange.scope, exchange.receive, exchange.send)
            except ClientDisconnect:
                return  # nobody waits for an answer; where the body was late, the server has its own
            except Exception as error:
                if not exchange.status:
                    answer = error_answer(500, f"this front failed: {type(error).__name__}", "server_error")
                    await answer(exchange.scope, exchange.receive, exchange.send)
                raise  # the server writes the traceback
            finally:
                share.leave()
                counted.ended(exchange.scope, exchange.status)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, share: Share) -> None:
        self._receive = receive
        self._send = send
        self._share = share
        headers = Headers(scope=scope)
        self._id = _request_id(headers.get("x-request-id", ""))
        length = headers.get("content-length", "0")
        self._bytes = int(length) if length.isdecimal() else 0  # as told; then as seen, if that is more
        self._seen = 0
        self.status = 0  # of the answer, once it has begun
        self.scope = {
            **scope,
            # HEAD is GET without a body, which the server leaves out.
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
            "path": scope["path"].rstrip("/") or "/",
            "state": {**scope.get("state", {}), "request_id": self._id, "share": share},
        }
        self._most = MAX_EDIT_BYTES if self.scope["path"] in _WITH_PICTURES else MAX_BODY_BYTES

    async def receive(self) -> Message:
        """The next part of the body, or the disconnect.

        Raises:
            HTTPException: the body is too large, and is not read if it says so itself; or there is no room for it.
        """
        self._refuse_large_body()
        message = await self._receive()
        part = len(message.get("body", b""))
        self._seen += part
        self._bytes = max(self._bytes, self._seen)
        self._refuse_large_body()
        self._share.take(part)
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    def _refuse_large_body(self) -> None:
        if self._bytes > self._most:
            raise HTTPException(413, f"the body is larger than {self._most} bytes")


def _request_id(given: str) -> str:
    return given if _SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
