"""An HTTP server for an ASGI application that slow and hostile clients cannot hold up: uvicorn, with bounds.

uvicorn (0.54) waits forever for a request's headers, takes headers of any length and any number of connections. Here a
connection that is silent, or whose headers are slow or long, is closed, and so is one too many.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0  # for all headers of a request
BODY_S = 60.0  # for its body
SEND_S = 60.0  # for the client to take one part of the answer
IDLE_S = 75.0  # between two requests on a connection
MAX_HEAD_BYTES = 1 << 16
MAX_CONNECTIONS = 2000
_FILES_FOR_ELSE = 200  # of those that the process may open: Triton's connections, modules, logs

_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _BoundedProtocol(HttpToolsProtocol):
    """A connection whose headers come in time and are not too long, or that is closed."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > _max_connections():
            self._refuse(_TOO_MANY)
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_TOO_LONG)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_here()
        super().on_headers_complete()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._head_bytes = 0

    def _refuse(self, answer: bytes) -> None:
        self._head_is_here()
        self.transport.write(answer)
        self.transport.close()


class SharedLoopServer(uvicorn.Server):
    """A server beside others in one event loop, whose owner handles signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_settings(app: ASGIApp, **more: Any) -> uvicorn.Config:
    """uvicorn's settings for an application, with this module's bounds."""
    return uvicorn.Config(
        Timely(app),
        http=_BoundedProtocol,
        timeout_keep_alive=int(IDLE_S),
        server_header=False,
        access_log=False,
        **{"log_level": "error"} | more,
    )


def run(app: ASGIApp, host: str, port: int, *, last_answers_s: int) -> None:
    """Serves an application until a signal ends it.

    Args:
        app: the application, with a lifespan.
        host: the address to listen on; see `listen`.
        port: the TCP port.
        last_answers_s: seconds that requests in flight have at the end.

    Raises:
        OSError: the address cannot be used.
    """
    allow_many_connections()
    settings = server_settings(app, timeout_graceful_shutdown=last_answers_s)
    uvicorn.Server(settings).run(sockets=listen(host, port))


class Timely:
    """An application whose clients must send their bodies, and take their answers, in time.

    A body that is not there after `BODY_S` reads as a disconnect, and is answered with 408. An answer of which no part
    has been taken for `SEND_S` ends. A client that leaves is no fault, and nothing is logged of it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            if not exchange.gone:
                raise
        if exchange.late and not exchange.answered:
            body = f'{{"error": "the body has not arrived within {BODY_S:g} s"}}'.encode()
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 408, "headers": headers})
            await send({"type": "http.response.body", "body": body})


class _Exchange:
    """One request and its answer.

    Attributes:
        late: whether the body has not come in time.
        gone: whether the client has left, or counts as one that has.
        answered: whether an answer has begun.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._more = True
        self._ends = asyncio.get_running_loop().time() + BODY_S
        self.late = self.gone = self.answered = False

    async def receive(self) -> Message:
        """A part of the body, or the disconnect."""
        if not self._more:
            return await self._receive()  # the disconnect, which may be long in coming
        try:
            async with asyncio.timeout_at(self._ends):
                message = await self._receive()
        except TimeoutError:
            self.late = True
            message = {"type": "http.disconnect"}
        self.gone = message["type"] == "http.disconnect"
        self._more = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the answer.

        Raises:
            TimeoutError: the client does not take it.
        """
        self.answered = True
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(message)
        except TimeoutError:
            self.gone = True
            raise


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at an address: one, or one for each address of a name that this machine has. `::` takes IPv4
    too.

    Raises:
        OSError: the address cannot be used.
    """
    with ExitStack() as stack:
        sockets, missing = [], OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for family, _, _, _, address in dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)):
            dual = host == "::" and socket.has_dualstack_ipv6()
            try:
                made = socket.create_server(address[:2], family=family, backlog=2048, dualstack_ipv6=dual)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # `localhost` has an IPv6 address where the machine may have none
                continue
            sockets.append(stack.enter_context(made))
        if not sockets:
            raise missing
        stack.pop_all()
        return sockets


def allow_many_connections() -> None:
    """Raises this process's limit of open files as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _max_connections() -> int:
    """Below the limit of open files, at which nothing can be accepted or answered."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, (soft - _FILES_FOR_ELSE) // 2)
