"""What the guard does with HTTP: it reads a request whole, checks it, and hands it on over Triton's own socket."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import aiohttp
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from yarl import URL

from plugin.errors import shortened
from plugin.ops.control import HTTP_HEADER
from plugin.ops.guard.bodies import MAX_BODY_BYTES, checked_generate, checked_infer, decoded
from plugin.ops.guard.refusals import Refused

_MAX_DROPPED_BYTES = 1 << 30
_MAX_LINE_BYTES = 8192  # of the address, and of one header
# What Triton (24.10) says of JSON that it cannot use, with a status of 500.
_UNUSABLE = ("Unable to parse", "failed to parse", "failed to get request params", "parameter key")
MAX_HELD_BYTES = 8 * MAX_BODY_BYTES  # of the bodies of all requests that are being read or handed on

_MODEL = r"/v2/models/[^/%\\?#\s]{1,256}(?:/versions/[0-9]{1,18})?"
_READ = re.compile(rf"/v2(?:/health/(?:live|ready)|/models/stats)?|{_MODEL}(?:/(?:ready|config|stats))?")
_WORK = re.compile(rf"{_MODEL}/(?P<call>infer|generate|generate_stream)")
_CONTROL = re.compile(
    rf"/v2/(?:repository|systemsharedmemory|cudasharedmemory|trace|logging)(?:/.*)?|{_MODEL}/trace/.*"
)
# Of one connection, not of the request (RFC 9110, 7.6.1), and what is set again for the checked body.
_KEPT_BACK = {
    *(
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
    ),
    *(b"host", b"content-length", b"content-encoding", b"inference-header-content-length"),
}
_NOT_ANSWERED = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"}


class HttpDoor:
    """The ASGI application before Triton's HTTP.

    Args:
        session: whose connections lead to Triton's socket.
        control_key: what requests that control the server must carry.
        held: the bodies of this process.
    """

    def __init__(self, session: aiohttp.ClientSession, control_key: str, held: HeldBodies) -> None:
        self._session = session
        self._control_key = control_key
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            self._check_address(request)
            async with self._held.body_of(request) as body:
                headers, body = _checked(request, body)
                await _unless_gone(receive, hand_on(self._session, request, headers, body, send))
        except Refused as refusal:
            await answer_error(send, refusal.status, str(refusal), close=refusal.status in (413, 503))

    def _check_address(self, request: Request) -> None:
        path, method = _path(request), request.method
        _check_head(request)
        if _CONTROL.fullmatch(path):
            given = request.headers.get(HTTP_HEADER, "")
            if not hmac.compare_digest(given.encode(), self._control_key.encode()):
                raise Refused(f"This API is restricted, expecting header '{HTTP_HEADER}'", 403)
        elif _WORK.fullmatch(path):
            _check_method(method, "POST")
        elif _READ.fullmatch(path):
            _check_method(method, "GET", "HEAD")
        else:
            raise Refused("there is nothing at this address", 404)


class MetricsDoor:
    """The ASGI application before Triton's metrics."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            if _path(request) != "/metrics":
                raise Refused("there is nothing at this address but /metrics", 404)
            _check_method(request.method, "GET", "HEAD")
            await hand_on(self._session, request, {}, b"", send)
        except Refused as refusal:
            await answer_error(send, refusal.status, str(refusal))


class HeldBodies:
    """The bodies that this process holds, bounded together.

    Args:
        most: bytes.
    """

    def __init__(self, most: int = MAX_HELD_BYTES) -> None:
        self._most = most
        self._bytes = 0

    @asynccontextmanager
    async def body_of(self, request: Request) -> AsyncIterator[bytes]:
        """Reads a request's body, which is held until the context ends.

        Raises:
            Refused: it is too large, or there is no room for it now.
            starlette.requests.ClientDisconnect: it has not come in time.
        """
        if int(request.headers.get("content-length", "0")) > MAX_BODY_BYTES:
            await _read_past(request)
            raise Refused(f"the body is larger than {MAX_BODY_BYTES} bytes", 413)
        body, before = bytearray(), self._bytes
        held = 0
        try:
            async for part in request.stream():
                body += part
                self._bytes += len(part)
                held += len(part)
                if held > MAX_BODY_BYTES:
                    raise Refused(f"the body is larger than {MAX_BODY_BYTES} bytes", 413)
                if self._bytes > self._most:
                    raise Refused(f"the bodies of other requests take {before} bytes: try again in 1 s", 503)
            yield bytes(body)
        finally:
            self._bytes -= held


async def _read_past(request: Request) -> None:
    """Reads a body that is too large and drops it: many clients look for an answer only once they have sent all."""
    dropped = 0
    async for part in request.stream():
        dropped += len(part)
        if dropped > _MAX_DROPPED_BYTES:
            return


def _path(request: Request) -> str:
    """As it was sent: what is written with % is no name of ours."""
    return bytes(request.scope["raw_path"]).decode("ascii", "replace").rstrip("/") or "/"


def _check_head(request: Request) -> None:
    """Triton closes the connection where its parser finds a line too long."""
    if len(request.scope["raw_path"]) + len(request.scope["query_string"]) > _MAX_LINE_BYTES:
        raise Refused(f"the address has more than {_MAX_LINE_BYTES} bytes", 414)
    for name, value in request.headers.raw:
        if len(value) > _MAX_LINE_BYTES:
            shown = name.decode("latin-1")[:64]
            raise Refused(f"header {shown} has {len(value)} bytes, must have at most {_MAX_LINE_BYTES}", 431)


def _check_method(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise Refused(f"method is {method[:20]}, must be {' or '.join(allowed)}", 405)


def _checked(request: Request, body: bytes) -> tuple[dict[str, str], bytes]:
    """The headers that describe the body, and the body, as they are handed on."""
    work = _WORK.fullmatch(_path(request))
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if work is None and request.method in ("GET", "HEAD"):
        return {}, b""
    if work is None:
        return ({"Content-Encoding": encoding} if encoding else {}), body
    body = decoded(body, encoding)
    if work["call"] != "infer":
        return {}, checked_generate(body)
    body, length = checked_infer(body, request.headers.get("inference-header-content-length"))
    return ({} if length is None else {"Inference-Header-Content-Length": length}), body


async def hand_on(
    session: aiohttp.ClientSession, request: Request, own_headers: dict[str, str], body: bytes, send: Send
) -> None:
    """Sends a request to Triton, and its answer to the client part by part.

    Args:
        session: whose connections lead to Triton's socket.
        request: the client's.
        own_headers: those that describe the body.
        body: what is sent.
        send: the client's end.
    """
    query = request.scope["query_string"].decode("ascii", "replace")
    url = URL(f"http://triton{_path(request)}{'?' + query if query else ''}", encoded=True)
    headers = [
        (name.decode(), value.decode("latin-1")) for name, value in request.headers.raw if name not in _KEPT_BACK
    ]
    begun = False
    try:
        async with session.request(
            # HEAD is GET without a body, which the server leaves out; Triton (24.10) closes the connection instead.
            "GET" if request.method == "HEAD" else request.method,
            url,
            headers=[*headers, *own_headers.items()],
            data=body or None,
            allow_redirects=False,
        ) as answer:
            kept = [(name.lower(), value) for name, value in answer.raw_headers if name.lower() not in _NOT_ANSWERED]
            if answer.status >= 400:
                status, error = _error_of(answer.status, await answer.read())
                kept = [(name, value) for name, value in kept if name != b"content-length"]
                kept.append((b"content-length", str(len(error)).encode()))
                await send({"type": "http.response.start", "status": status, "headers": kept})
                await send({"type": "http.response.body", "body": error})
                return
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            begun = True
            async for part in answer.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
    except aiohttp.ClientConnectorError:
        raise Refused("Triton does not answer: it starts, or has ended", 503) from None
    except (aiohttp.ClientError, ValueError) as error:
        if begun:
            raise  # uvicorn closes the connection, which tells the client that the answer is not whole
        raise Refused(f"Triton has not answered: {type(error).__name__}", 502) from None


def _error_of(status: int, body: bytes) -> tuple[int, bytes]:
    """Triton's error, an event where it is of a stream: with a text of bounded length, since Triton quotes names and
    ids, and as the client's fault where it is."""
    prefix = b"data: " if body.startswith(b"data: ") else b""
    try:
        text = json.loads(body.removeprefix(prefix))["error"]
        error = json.dumps({"error": shortened(text)}).encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        return status, body
    return (400 if text.startswith(_UNUSABLE) else status), prefix + error + (b"\n\n" if prefix else b"")


async def _unless_gone(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Does the work, or ends it as soon as the client disconnects: Triton then cancels the request."""
    leaving = asyncio.ensure_future(_gone(receive))
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({leaving, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (leaving, working):
            task.cancel()
        await asyncio.wait({leaving, working})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer_error(send: Send, status: int, message: str, *, close: bool = False) -> None:
    """Answers with an error as Triton writes it."""
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if close:
        headers.append((b"connection", b"close"))
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
