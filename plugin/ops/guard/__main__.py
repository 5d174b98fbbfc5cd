"""The guard's process: `python -m plugin.ops.guard`, with a `GuardConfig` in JSON on its standard input."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import grpc
from starlette.types import ASGIApp

from plugin.ops.guard import GuardConfig, Tls, address, grpc_socket, http_socket, metrics_socket
from plugin.ops.guard.bodies import MAX_BODY_BYTES
from plugin.ops.guard.over_grpc import make_server
from plugin.ops.guard.over_http import MAX_HELD_BYTES, HeldBodies, HttpDoor, MetricsDoor
from plugin.ops.http_server import SharedLoopServer, allow_many_connections, listen, server_settings

_MAX_GRPC_CALLS = 2000
_LAST_ANSWERS_S = 2.0  # Triton has ended by then: what is still open will not be answered


async def guard(config: GuardConfig) -> None:
    """Listens until a signal asks it to end.

    Raises:
        OSError: a port cannot be used.
    """
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with AsyncExitStack() as stack:
        if config.http_port is not None:
            session = await stack.enter_async_context(_session(http_socket(config.sockets)))
            await _listen(stack, HttpDoor(session, config.control_key, HeldBodies()), config.host, config.http_port)
        if config.metrics_port is not None:
            session = await stack.enter_async_context(_session(metrics_socket(config.sockets)))
            await _listen(stack, MetricsDoor(session), config.host, config.metrics_port)
        if config.grpc_port is not None:
            await _listen_to_grpc(stack, config)
        await ending.wait()


async def _listen(stack: AsyncExitStack, app: ASGIApp, host: str, port: int) -> None:
    sockets = listen(host, port)
    server = SharedLoopServer(server_settings(app, lifespan="off", timeout_graceful_shutdown=int(_LAST_ANSWERS_S)))
    serving = asyncio.ensure_future(server.serve(sockets))

    async def end() -> None:
        server.should_exit = True
        await serving

    stack.push_async_callback(end)


async def _listen_to_grpc(stack: AsyncExitStack, config: GuardConfig) -> None:
    assert config.grpc_port is not None
    server, channel = make_server(
        f"unix:{grpc_socket(config.sockets)}",
        config.control_key,
        max_message_bytes=MAX_BODY_BYTES,
        max_held_bytes=MAX_HELD_BYTES,
        max_calls=_MAX_GRPC_CALLS,
        connections=config.connections,
    )
    listens_on = address(config.host, config.grpc_port)
    if config.tls is None:
        server.add_insecure_port(listens_on)
    else:
        server.add_secure_port(listens_on, _credentials(config.tls))
    await server.start()
    stack.push_async_callback(channel.close)
    stack.push_async_callback(server.stop, _LAST_ANSWERS_S)


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    pair = Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes()
    root = None if tls.root is None else Path(tls.root).read_bytes()
    return grpc.ssl_server_credentials([pair], root, require_client_auth=tls.mutual)


def _session(socket: Path) -> aiohttp.ClientSession:
    """Each request has a connection of its own: one that was kept could end just as it is used again."""
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(str(socket), limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    )


def main() -> None:
    """Reads the configuration, and guards."""
    config = GuardConfig.from_json(sys.stdin.read())
    allow_many_connections()
    try:
        asyncio.run(guard(config))
    except (OSError, RuntimeError) as error:  # gRPC reports a port that is taken as a RuntimeError
        sys.exit(f"error: the ports on {config.host} cannot be opened: {error}")


if __name__ == "__main__":
    main()
