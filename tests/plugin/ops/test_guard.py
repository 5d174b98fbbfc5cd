"""The guard without Triton: what of a body is refused, and that what goes on is what was checked."""

from __future__ import annotations

import asyncio
import json
import socket
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

import plugin.ops.http_server
from plugin.ops.guard import GuardConfig, Tls, address
from plugin.ops.guard.bodies import MAX_BODY_BYTES, checked_generate, checked_infer, decoded
from plugin.ops.guard.over_grpc import SERVICE, make_server
from plugin.ops.guard.over_http import HeldBodies
from plugin.ops.guard.refusals import Refused
from plugin.ops.http_server import SharedLoopServer, listen, server_settings

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@settings(derandomize=True, deadline=None)
@given(st.dictionaries(st.text(max_size=8).map("x".__add__), JSON, max_size=5))
def test_what_is_sound_goes_on_as_it_was_meant(fields):
    assert json.loads(checked_generate(json.dumps(fields).encode())) == fields


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_are_refused(body):
    for check in (checked_generate, lambda body: checked_infer(body, None)):
        with suppress(Refused):
            check(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is no JSON: Expecting value"),
        (b"[]", "the body is no JSON object"),
        (b'{"a": NaN}', "the JSON has NaN, must have finite numbers"),
        (b'{"a": 1e999}', "a number of the JSON is beyond what a double holds"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of the JSON is beyond what a double holds"),
        (b'{"a": "\\ud800"}', "a text of the JSON has half of a surrogate pair, must be Unicode"),
        (b'{"a": "\xed\xa0\x80"}', "a text of the JSON has half of a surrogate pair, must be Unicode"),
        (b'{"a": "\xff"}', "the body is no JSON: 'utf-8' codec"),
        (b'{"a": 1, "a": 2}', "'a' is in one JSON object twice"),
        (b'{"seed": 9223372036854775808}', "seed is 9223372036854775808, must be from -9223372036854775808 to "),
        (b'{"height": [1, 4294967360]}', "height is 4294967360, must be from -2147483648 to 2147483647: it is INT32"),
        (b'{"guidance_scale": 1e308}', "guidance_scale is 1.00000e+308, must be from -3.4e38 to 3.4e38: it is FP32"),
        (b'{"guidance_scale": 1' + b"0" * 300 + b"}", "guidance_scale is 1.00000e+300, must be from -3.4e38"),
        (b'{"seed": ' + b"9" * 100 + b"}", "seed is a number of more than 40 digits, must be from "),
    ],
)
def test_what_is_no_sound_json_is_refused(body, message):
    with pytest.raises(Refused) as caught:
        checked_generate(body)
    assert str(caught.value).startswith(message)


def tensor(**more: Any) -> dict[str, Any]:
    return {"name": "seed", "datatype": "INT64", "shape": [1], "data": [1]} | more


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"parameters": 0}, "parameters are no JSON object"),
        ({"inputs": 1}, "inputs is no list of JSON objects"),
        ({"inputs": [1]}, "inputs is no list of JSON objects"),
        ({"inputs": [tensor(parameters=[])]}, "parameters of inputs are no JSON object"),
        (
            {"inputs": [tensor(shape=[2**36])]},
            "shape of seed is [68719476736], must have as many values as data, which has 1",
        ),
        ({"inputs": [tensor(shape=[-1])]}, "shape of seed is [-1], must be a list of integers from 0"),
        ({"inputs": [tensor(shape=[True])]}, "shape of seed is [True], must be a list of integers from 0"),
        ({"inputs": [tensor(shape=1)]}, "shape of seed is 1, must be a list of integers from 0"),
        (
            {"inputs": [tensor(data=[[1, 2], [3]])]},
            "shape of seed is [1], must have as many values as data, which has 3",
        ),
        ({"inputs": [tensor(data=[2**63])]}, "seed is 9223372036854775808, must be from "),
        (
            {"outputs": [{"name": "report", "parameters": {"classification": 1}}]},
            "parameter classification of an output",
        ),
    ],
)
def test_a_tensor_that_lies_is_refused(request_, message):
    with pytest.raises(Refused) as caught:
        checked_infer(json.dumps(request_).encode(), None)
    assert str(caught.value).startswith(message)


def test_binary_data_goes_on_behind_json_of_the_length_that_is_told():
    header = json.dumps({"inputs": [tensor(name="é")]}, ensure_ascii=False).encode()
    body, length = checked_infer(header + b"\0\1\xff", str(len(header)))
    assert length is not None
    assert json.loads(body[: int(length)]) == json.loads(header)
    assert body[int(length) :] == b"\0\1\xff"


def test_a_compressed_body_is_decoded_within_the_limit():
    assert decoded(zlib.compress(b"{}"), "deflate") == b"{}"
    with pytest.raises(Refused, match="cut off"):
        decoded(zlib.compress(b"{}")[:-1], "deflate")
    with pytest.raises(Refused, match=f"larger than {MAX_BODY_BYTES} bytes") as caught:
        decoded(zlib.compress(bytes(MAX_BODY_BYTES + 1)), "gzip")
    assert caught.value.status == 413


def test_bodies_are_bounded_together_and_their_room_is_given_back():
    held = HeldBodies(most=100)

    def request_of(size: int) -> Request:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": bytes(size)}

        return Request({"type": "http", "headers": [(b"content-length", str(size).encode())]}, receive)

    async def run() -> None:
        async with held.body_of(request_of(60)) as body:
            assert len(body) == 60
            with pytest.raises(Refused, match="the bodies of other requests take 60 bytes: try again in 1 s") as caught:
                async with held.body_of(request_of(60)):
                    pass
            assert caught.value.status == 503
        async with held.body_of(request_of(60)) as body:
            assert len(body) == 60

    asyncio.run(run())


def test_the_configuration_travels_whole_and_hides_its_key():
    ages = (("grpc.max_connection_age_ms", 5),)
    config = GuardConfig("::", 1, None, 3, "/s", "secret-key-of-16", Tls("c", "k", mutual=True), ages)
    assert GuardConfig.from_json(config.to_json()) == config
    assert "secret" not in repr(config)
    assert (address("::1", 8000), address("localhost", 8000)) == ("[::1]:8000", "localhost:8000")


def test_clients_connections_last_as_long_as_they_are_told_to():
    """Then clients look up names again, and find servers that were added."""

    async def is_ended_within(seconds: float, connections: Sequence[tuple[str, int]]) -> bool:
        server, to_triton = make_server(
            "unix:/nowhere", "key", max_message_bytes=1000, max_held_bytes=1000, max_calls=10, connections=connections
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            ended = channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            with suppress(TimeoutError):
                await asyncio.wait_for(ended, seconds)
            state = channel.get_state()
        await server.stop(0)
        await to_triton.close()
        return state is not grpc.ChannelConnectivity.READY

    assert asyncio.run(is_ended_within(5, [("grpc.max_connection_age_ms", 200)]))
    assert not asyncio.run(is_ended_within(0.5, []))


def test_bodies_over_grpc_are_bounded_together():
    """Two calls at once, of which Triton answers none before the other has come."""

    async def run() -> list[Any]:
        triton, both = grpc.aio.server(), asyncio.Event()
        arrived: list[bytes] = []

        async def answer(request: bytes, _: Any) -> bytes:
            arrived.append(request)
            await asyncio.wait_for(both.wait(), 20)
            return b"answer"

        handlers = {"ServerLive": grpc.unary_unary_rpc_method_handler(answer)}
        triton.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)]
        )
        behind = triton.add_insecure_port("127.0.0.1:0")
        server, to_triton = make_server(
            f"127.0.0.1:{behind}", "key", max_message_bytes=1000, max_held_bytes=150, max_calls=10
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await triton.start()
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(f"{SERVICE}ServerLive")
            first = asyncio.ensure_future(call(bytes(100)))
            while not arrived:
                await asyncio.sleep(0.01)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call(bytes(100))
            both.set()
            results = [await first, await call(bytes(100))]
        await server.stop(0)
        await to_triton.close()
        await triton.stop(0)
        return [refusal.value.code(), refusal.value.details(), *results]

    code, details, *results = asyncio.run(run())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert details == "the bodies of other requests take 100 bytes: try again in 1 s"
    assert results == [b"answer", b"answer"], "what has ended makes room"


# The server below guard and front


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[int]:
    (listening,) = listen("127.0.0.1", 0)
    server = SharedLoopServer(server_settings(app, lifespan="off"))
    task = asyncio.ensure_future(server.serve([listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b"".join([part async for part in Request(scope, receive).stream()])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def raw(port: int, data: bytes) -> bytes:
    """What comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_slow_headers_bodies_and_readers_are_given_up(monkeypatch):
    given_up = []

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(1000):
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        except TimeoutError:
            given_up.append(scope["path"])

    for name in ("HEAD_S", "BODY_S", "SEND_S"):
        monkeypatch.setattr(plugin.ops.http_server, name, 0.2)

    async def run() -> None:
        async with running(echo) as port:
            assert await raw(port, b"") == b""
            assert await raw(port, b"POST / HTTP/1.1\r\nX: y\r\n") == b""
            slow_body = await raw(port, b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
            assert slow_body.startswith(b"HTTP/1.1 408 ")
            assert b"the body has not arrived within 0.2 s" in slow_body
            async with httpx2.AsyncClient(trust_env=False) as client:
                assert (await client.post(f"http://127.0.0.1:{port}/", content=b"quick")).content == b"quick"
        async with running(flood) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(1)
            writer.close()

    asyncio.run(run())
    assert given_up == ["/"]


def test_one_connection_too_many_is_told_so_and_headers_without_end_too(monkeypatch):
    monkeypatch.setattr(plugin.ops.http_server, "MAX_CONNECTIONS", 3)

    async def run() -> None:
        async with running(echo) as port:
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            await asyncio.sleep(0.05)
            assert (await raw(port, b"")).startswith(b"HTTP/1.1 503 ")
            for _, writer in held:
                writer.close()
            await asyncio.sleep(0.05)
            answer = await raw(port, b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000)
            assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""

    asyncio.run(run())


def test_all_addresses_of_a_host_are_listened_to():
    sockets = listen("::", 0)
    try:
        with socket.create_connection(("127.0.0.1", sockets[0].getsockname()[1]), timeout=5):
            pass
    finally:
        for each in sockets:
            each.close()
