"""The ways into a server: how a request goes over each of them, and what may come back."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from plugin.fields import FIELDS
from tests.support.fuzz.values import DATATYPES, EXTREME, NAMES, SHAPES, fields

ANSWER_S = 20.0
TYPES = {field.name: field.type.removeprefix("TYPE_").replace("STRING", "BYTES") for field in FIELDS}
_CONTENTS = {"BYTES": "bytes_contents", "INT64": "int64_contents", "INT32": "int_contents", "FP32": "fp32_contents"}
_CONTENTS |= {"BOOL": "bool_contents", "UINT64": "uint64_contents", "FP64": "fp64_contents"}


class Fault(AssertionError):
    """The server did something that it must not do."""


@dataclass(frozen=True)
class Way:
    """One way into a server.

    Attributes:
        name: for people.
        requests: what is sent.
        send: sends it, and checks the answer; raises `Fault`.
    """

    name: str
    requests: st.SearchStrategy[Any]
    send: Callable[[Any], None]


def check_error(text: str, most: int = 1100) -> None:
    """An error's text has at most that many bytes, and tells nothing of the server."""
    if len(text.encode("utf-8", "replace")) > most:
        raise Fault(f"an error of {len(text)} characters: {text[:200]}")
    for told in ("Traceback", "site-packages", "/plugin/", "/taylorseer/", ".py"):
        if told in text:
            raise Fault(f"an error tells {told!r}: {text[:300]}")


# gRPC


def _tensor(draw: Any, request: Any, name: str, value: Any) -> None:
    datatype = draw(st.just(TYPES.get(name, "BYTES")) | st.just(TYPES.get(name, "BYTES")) | DATATYPES)
    tensor = request.inputs.add(name=name.encode("utf-8", "ignore").decode(), datatype=datatype, shape=draw(SHAPES))
    contents = draw(st.just(_CONTENTS.get(datatype)) | st.sampled_from([None, *_CONTENTS.values()]))
    if contents is None:
        request.raw_input_contents.append(draw(st.binary(max_size=24) | st.just(b"\4\0\0\0star")))
        return
    try:
        if contents == "bytes_contents":
            value = str(value).encode("utf-8", "ignore")
        getattr(tensor.contents, contents).append(value)
    except (TypeError, ValueError, OverflowError):  # protobuf itself holds no such value
        getattr(tensor.contents, contents).append(b"x" if contents == "bytes_contents" else 1)


@st.composite
def grpc_requests(draw: Any) -> tuple[str, Any]:
    """Which call, and a request of it."""
    request = service_pb2.ModelInferRequest(
        model_name=draw(st.sampled_from(["swan", "swan", "swan_stream", "swan_stream", "nobody", "", "../swan"])),
        model_version=draw(st.sampled_from(["", "", "", "1", "2", "-1", "x", "9" * 30])),
        id=draw(st.sampled_from(["", "a", "é" * 3000, "x\ny"])),
    )
    for name, value in draw(fields()).items():
        _tensor(draw, request, name, value)
    if draw(st.booleans()) and request.inputs:
        request.inputs.add().CopyFrom(request.inputs[0])
    for name in draw(st.lists(NAMES, max_size=2)):
        parameter = request.parameters[name.encode("utf-8", "ignore").decode()]
        kind, value = draw(st.sampled_from([("bool_param", True), ("int64_param", -1), ("string_param", "x" * 9000)]))
        setattr(parameter, kind, value)
    for name in draw(st.lists(st.sampled_from(["image", "report", "b64_json", "step", "x", ""]), max_size=2)):
        output = request.outputs.add(name=name)
        key = draw(st.sampled_from(["", "classification", "shared_memory_region", "binary_data"]))
        if key == "shared_memory_region":
            output.parameters[key].string_param = "nobody"
        elif key:
            output.parameters[key].int64_param = draw(st.sampled_from([0, 1, -1, 2**40]))
    return draw(st.sampled_from(["ModelInfer", "ModelStreamInfer"])), request


def grpc_way(url: str) -> Way:
    """Plain calls and streams, with messages made by hand."""
    channel = grpc.insecure_channel(url, [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)])
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def send(call_and_request: tuple[str, Any]) -> None:
        call, request = call_and_request
        try:
            if call == "ModelInfer":
                _check_outputs(stub.ModelInfer(request, timeout=ANSWER_S))
                return
            for answer in stub.ModelStreamInfer(iter([request]), timeout=ANSWER_S):
                check_error(answer.error_message)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Fault(f"no answer in {ANSWER_S:g} s") from None
            if "Socket closed" in (error.details() or "") or "connect" in (error.details() or ""):
                raise Fault(f"the connection broke: {error.details()}") from None
            check_error(error.details() or "")

    return Way("gRPC", grpc_requests(), send)


def _check_outputs(answer: Any) -> None:
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
        if output.name == "report":
            json.loads(raw[4:], parse_constant=_no_constant)
        if output.name == "image" and int(np.prod(output.shape)) != len(raw):
            raise Fault(f"an image of shape {list(output.shape)} has {len(raw)} bytes")


def _no_constant(name: str) -> None:
    raise Fault(f"the report has {name}")


# HTTP


def http_exchange(host: str, data: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to these very bytes; 0 where the connection is closed without one."""
    name, port = host.rsplit(":", 1)
    with socket.create_connection((name, int(port)), timeout=ANSWER_S) as connection:
        received = b""
        try:
            connection.sendall(data)
            ends = time.monotonic() + ANSWER_S
            while part := connection.recv(1 << 20):
                received += part
                if time.monotonic() > ends:
                    raise Fault(f"the answer goes on after {ANSWER_S:g} s")
        except TimeoutError:
            raise Fault(f"no answer in {ANSWER_S:g} s") from None
        except ConnectionError:
            pass
    if not received:
        return 0, b""
    if not received.startswith(b"HTTP/1."):
        raise Fault(f"the answer is {received[:80]!r}")
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


@st.composite
def bodies(draw: Any, sound: st.SearchStrategy[Any]) -> tuple[bytes, list[bytes]]:
    """The bytes of a body, and headers that describe it, truly or not."""
    text = json.dumps(draw(sound | sound | sound | EXTREME | st.lists(EXTREME)))
    kind = draw(st.sampled_from(["plain"] * 6 + ["cut", "bom", "latin", "twice", "nested", "binary"]))
    body = text.encode("utf-8", "surrogatepass")
    body = {
        "plain": body,
        "cut": body[: len(body) // 2],
        "bom": b"\xef\xbb\xbf" + body,
        "latin": body.replace(b"a", b"\xe9"),
        "twice": body[:-1] + b',"prompt":"x","prompt":"y"}',
        "nested": body[:-1] + b',"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "binary": body + draw(st.binary(max_size=40)),
    }[kind]
    headers = []
    encoding = draw(st.sampled_from([""] * 6 + ["gzip", "deflate", "br", "lie"]))
    if encoding:
        headers.append(b"Content-Encoding: " + (b"gzip" if encoding == "lie" else encoding.encode()))
        body = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)(body)
    if draw(st.integers(0, 5)) == 0:
        length = draw(st.sampled_from([b"99999999999", b"-1", b"0", b"7", b"%d" % len(text), b"x", b""]))
        headers.append(b"Inference-Header-Content-Length: " + length)
    framing = draw(st.sampled_from(["length"] * 5 + ["chunks", "short"]))
    if framing == "chunks":
        size = draw(st.sampled_from([1, 7, 1000]))
        parts = [body[i : i + size] for i in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        headers.append(b"Transfer-Encoding: chunked")
    else:
        headers.append(b"Content-Length: %d" % (len(body) - (framing == "short" and len(body) > 2)))
    return body, headers


def _http_way(name: str, host: str, paths: st.SearchStrategy[str], sound: st.SearchStrategy[Any], extra: bytes) -> Way:
    methods = st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
    requests = st.tuples(methods, paths, bodies(sound))

    def send(request: tuple[str, str, tuple[bytes, list[bytes]]]) -> None:
        method, path, (body, headers) = request
        lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: x", b"Connection: close", extra, *headers]
        status, answer = http_exchange(host, b"\r\n".join(filter(None, lines)) + b"\r\n\r\n" + body)
        if status >= 400:
            check_error(answer.decode("utf-8", "replace"), most=60_000)  # Triton quotes the request's id whole
        if status >= 500 and method != "HEAD" and not _says_why(answer):
            raise Fault(f"status {status}: {answer[:300]!r}")

    return Way(name, requests, send)


def _says_why(answer: bytes) -> bool:
    """Whether an answer with a status of 500 and more is an error in JSON, and none that Python has not foreseen."""
    try:
        error = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return not any(
        told in str(error) for told in ("TypeError", "ValueError", "KeyError", "this front failed", "IndexError")
    )


@st.composite
def _infer_bodies(draw: Any) -> dict[str, Any]:
    inputs = []
    for name, value in draw(fields()).items():
        data = draw(st.just([value]) | st.just([value]) | st.just([[value]]) | EXTREME)
        tensor = {"name": name, "datatype": draw(st.just(TYPES.get(name, "BYTES")) | DATATYPES), "shape": draw(SHAPES)}
        parameters = draw(st.sampled_from([None] * 4 + [{"binary_data_size": 5}, {"binary_data_size": -9}, 3]))
        inputs.append({**tensor, **({"data": data} if parameters is None else {"parameters": parameters})})
    more = draw(st.dictionaries(st.sampled_from(["id", "parameters", "outputs", "x"]), EXTREME, max_size=1))
    return {"inputs": inputs, **more}


def infer_way(host: str) -> Way:
    """HTTP's infer."""
    paths = st.sampled_from(["/v2/models/swan/infer"] * 6 + ["/v2/models/swan_stream/infer", "/v2/models/x/infer"])
    return _http_way("infer", host, paths, _infer_bodies(), b"")


def generate_way(host: str) -> Way:
    """HTTP's generate, both ways, and whatever else has an address."""
    others = [
        "/v2",
        "/v2/health/ready",
        "/v2/repository/index",
        "/v2/models/stats",
        "/v2/models/%2e%2e/config",
        "/x",
        "/",
    ]
    crossed = ["/v2/models/swan/generate_stream", "/v2/models/swan_stream/generate"]
    usual = ["/v2/models/swan/generate", "/v2/models/swan_stream/generate_stream"] * 4
    paths = st.sampled_from([*usual, *crossed, "/v2/models/swan/versions/9/generate", *others])
    return _http_way("generate", host, paths, fields(), b"")


def front_way(host: str) -> Way:
    """The front's routes."""
    renamed = fields().map(lambda given: {name: each for name, each in given.items() if name != "response_format"})
    own = st.dictionaries(
        st.sampled_from(["n", "size", "stream", "partial_images", "model", "output_format", "user", "seed", "url"]),
        st.sampled_from([None, 1, 2, True, "64x64", "auto", "png", "webp", "swan", "", "x"]) | EXTREME,
        max_size=3,
    )
    paths = st.sampled_from(
        ["/v1/images/generations"] * 8
        + [
            "/v1/images/edits",
            "/v1/models",
            "/v1/models/swan",
            "/v1/models/\u0000",
            "/healthz",
            "/v1/chat/completions",
            "/",
        ]
    ).map(lambda path: path.replace("\0", "%00"))
    sound = st.builds(lambda one, other: {**one, **other}, renamed, own)
    return _http_way("front", host, paths, sound, b"Content-Type: application/json")
