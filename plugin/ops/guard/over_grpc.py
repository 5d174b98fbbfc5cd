"""What the guard does with gRPC: it hands on the bytes of each call, once it has read and checked the request."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as messages

from plugin.errors import shortened
from plugin.ops.control import GRPC_HEADER, GRPC_METHODS
from plugin.ops.guard.refusals import CLASSIFICATION, Refused, Room

SERVICE = "/inference.GRPCInferenceService/"
_STREAM = f"{SERVICE}ModelStreamInfer"
_INFER = f"{SERVICE}ModelInfer"
_OTHERS = ("/grpc.health.v1.Health/Check",)
_TO_TRITON = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # Of errors, whose text Triton begins with the request's id, of any length.
    ("grpc.max_metadata_size", 1 << 20),
    ("grpc.absolute_max_metadata_size", 1 << 21),
]
_ERROR_FIRST = b"\x0a"  # begins a ModelStreamInferResponse that has an error_message
# What gRPC sets itself, and `triton_grpc_error`, with which a stream can end Triton (up to 26.03).
_KEPT_BACK = {"user-agent", "content-type", "te", "triton_grpc_error"}

_CODES = {403: grpc.StatusCode.PERMISSION_DENIED, 503: grpc.StatusCode.UNAVAILABLE}

Metadata = Sequence[tuple[str, str | bytes]]


def make_server(
    target: str,
    control_key: str,
    *,
    max_message_bytes: int,
    max_held_bytes: int,
    max_calls: int,
    connections: Sequence[tuple[str, int]] = (),
) -> tuple[grpc.aio.Server, grpc.aio.Channel]:
    """The server before Triton's gRPC, without a port yet, and its channel to Triton.

    Args:
        target: where Triton listens.
        control_key: what calls that control the server must carry.
        max_message_bytes: the largest request.
        max_held_bytes: of all requests that are being handed on.
        max_calls: the most calls at once.
        connections: gRPC's own options for clients' connections, as how long one may last.
    """
    channel = grpc.aio.insecure_channel(target, options=_TO_TRITON)
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a port that another server has must be an error
        *connections,
    ]
    server = grpc.aio.server(
        handlers=[_Forwarder(channel, control_key, max_held_bytes)], options=options, maximum_concurrent_rpcs=max_calls
    )
    return server, channel


class _Forwarder(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Hands calls on to Triton."""

    def __init__(self, channel: grpc.aio.Channel, control_key: str, max_held_bytes: int) -> None:
        self._channel = channel
        self._room = Room(max_held_bytes)
        self._control_key = control_key
        self._calls: dict[str, Any] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = details.method
        if method == _STREAM:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if method.startswith(SERVICE) or method in _OTHERS:
            return grpc.unary_unary_rpc_method_handler(partial(self._call, method))
        return None  # gRPC answers UNIMPLEMENTED

    async def _call(self, method: str, request: bytes, context: Any) -> bytes:
        metadata = context.invocation_metadata()
        try:
            self._check_key(method, metadata)
            if method == _INFER:
                _check(request)
            with self._room.of(len(request)):
                return await self._handed_on(method, request, metadata, context)
        except Refused as refusal:
            await context.abort(_CODES.get(refusal.status, grpc.StatusCode.INVALID_ARGUMENT), str(refusal))
            raise  # abort never returns

    async def _handed_on(self, method: str, request: bytes, metadata: Metadata, context: Any) -> bytes:
        call = self._channel.unary_unary(method)(
            request, metadata=_handed_on(metadata), timeout=context.time_remaining()
        )
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), shortened(error.details() or ""))
            raise  # abort never returns
        finally:
            call.cancel()

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        metadata = _handed_on(context.invocation_metadata())
        call = self._channel.stream_stream(_STREAM)(metadata=metadata, timeout=context.time_remaining())
        answering = asyncio.Lock()

        async def answer(response: bytes) -> None:
            async with answering:
                await context.write(response)

        feeding = asyncio.ensure_future(_feed(call, requests, answer, self._room))
        try:
            async for response in call:
                await answer(_with_short_error(response) if response.startswith(_ERROR_FIRST) else response)
            await feeding
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), shortened(error.details() or ""))
        finally:
            feeding.cancel()
            call.cancel()

    def _check_key(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        if method.removeprefix(SERVICE) not in GRPC_METHODS:
            return
        given = [value for name, value in metadata if name == GRPC_HEADER]
        if not any(isinstance(each, str) and hmac.compare_digest(each, self._control_key) for each in given):
            raise Refused(f"This protocol is restricted, expecting header '{GRPC_HEADER}'", 403)


async def _feed(
    call: Any, requests: AsyncIterator[bytes], answer: Callable[[bytes], Awaitable[None]], room: Room
) -> None:
    """Hands the requests of a stream on; one that is refused is answered here, as Triton answers it."""
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call has ended, and says why itself
        async for request in requests:
            try:
                _check(request)
                with room.of(len(request)):
                    await call.write(request)
            except Refused as refusal:
                await answer(messages.ModelStreamInferResponse(error_message=str(refusal)).SerializeToString())
        await call.done_writing()


def _check(request: bytes) -> None:
    """Refuses a request to a model that would end Triton.

    Raises:
        Refused: it is none, or asks for a classification.
    """
    try:
        parsed = messages.ModelInferRequest.FromString(request)
    except DecodeError:
        raise Refused("the request is no ModelInferRequest") from None
    if any("classification" in output.parameters for output in parsed.outputs):
        raise Refused(CLASSIFICATION)


def _with_short_error(response: bytes) -> bytes:
    """A response of a stream with an error that clients can read: gRPC loses what is longer than 8 KB."""
    parsed = messages.ModelStreamInferResponse.FromString(response)
    parsed.error_message = shortened(parsed.error_message)
    return parsed.SerializeToString()


def _handed_on(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    return [(name, value) for name, value in metadata if name not in _KEPT_BACK and not name.startswith("grpc-")]
