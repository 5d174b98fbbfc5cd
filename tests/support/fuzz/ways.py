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
from tests.support.fuzz.values import DATATYPES, EXTREME, NAMES, WRONG_SHAPES, fields, seldom

ANSWER_S = 20.0
TYPES = {field.name: field.type.removeprefix("TYPE_").replace("STRING", "BYTES") for field in FIELDS}
# What may come with a status of 500 and more: a full queue, a deadline, numbers that overflow on the way.
_FORESEEN = (b"requests are in flight", b"DEADLINE", b"not finite", b"NotFinite", b"coordinate")
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
        send: sends it, checks the answer, and returns whether a picture came; raises `Fault`.
    """

    name: str
    requests: st.SearchStrategy[Any]
    send: Callable[[Any], bool]


def check_error(text: str, most: int = 1100) -> None:
    """An error's text has at most that many bytes, and tells nothing of the server."""
    if len(text.encode("utf-8", "replace")) > most:
        raise Fault(f"an error of {len(text)} characters: {text[:200]}")
    for told in ("Traceback", "site-packages", "/plugin/", "/taylorseer/", ".py"):
        if told in text:
            raise Fault(f"an error tells {told!r}: {text[:300]}")


# gRPC


def _add_tensor(request: Any, name: str, value: Any) -> Any:
    """An input as it should be, if protobuf can hold the value at all."""
    datatype = TYPES.get(name, "BYTES")
    tensor = request.inputs.add(name=name.encode("utf-8", "ignore").decode(), datatype=datatype, shape=[1])
    contents = getattr(tensor.contents, _CONTENTS[datatype])
    try:
        contents.append(str(value).encode("utf-8", "ignore") if datatype == "BYTES" else value)
    except (TypeError, ValueError, OverflowError):
        contents.append(1)
    return tensor


def _break_tensor(draw: Any, request: Any, tensor: Any) -> None:
    what = draw(st.sampled_from(["shape", "datatype", "contents", "raw", "twice"]))
    if what == "shape":
        tensor.shape[:] = draw(WRONG_SHAPES)
    elif what == "datatype":
        tensor.datatype = draw(DATATYPES)
    elif what == "contents":
        tensor.contents.Clear()
        getattr(tensor.contents, draw(st.sampled_from(["int_contents", "int64_contents", "uint_contents"]))).append(1)
    elif what == "raw":
        request.raw_input_contents.append(draw(st.binary(max_size=24) | st.just(b"\4\0\0\0star")))
    else:
        request.inputs.add().CopyFrom(tensor)


@st.composite
def grpc_requests(draw: Any) -> tuple[str, Any]:
    """Which call, and a request of it."""
    call, usual = draw(st.sampled_from([("ModelInfer", "swan"), ("ModelStreamInfer", "swan_stream")]))
    others = st.sampled_from(["swan", "swan_stream", "nobody", "", "../swan"])
    model = draw(others) if draw(seldom(0.1)) else usual
    request = service_pb2.ModelInferRequest(
        model_name=model,
        model_version=draw(st.sampled_from(["1", "2", "-1", "x", "9" * 30])) if draw(seldom(0.1)) else "",
        id=draw(st.sampled_from(["", "a", "é" * 3000, "x\ny"])),
    )
    tensors = [_add_tensor(request, name, value) for name, value in draw(fields()).items()]
    if draw(seldom(0.3)):
        _break_tensor(draw, request, draw(st.sampled_from(tensors)))
    for name in draw(st.lists(NAMES, max_size=2)) if draw(seldom(0.3)) else []:
        parameter = request.parameters[name.encode("utf-8", "ignore").decode()]
        kind, value = draw(st.sampled_from([("bool_param", True), ("int64_param", -1), ("string_param", "x" * 9000)]))
        setattr(parameter, kind, value)
    outputs = st.sampled_from(["image", "report", "b64_json", "step", "x", ""])
    for name in draw(st.lists(outputs, max_size=2)) if draw(seldom(0.2)) else []:
        output = request.outputs.add(name=name)
        key = draw(st.sampled_from(["", "classification", "shared_memory_region", "binary_data"]))
        if key == "shared_memory_region":
            output.parameters[key].string_param = "nobody"
        elif key:
            output.parameters[key].int64_param = draw(st.sampled_from([0, 1, -1, 2**40]))
    return call, request


def grpc_way(url: str) -> Way:
    """Plain calls and streams, with messages made by hand."""
    channel = grpc.insecure_channel(url, [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)])
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def send(call_and_request: tuple[str, Any]) -> bool:
        call, request = call_and_request
        try:
            if call == "ModelInfer":
                return _check_outputs(stub.ModelInfer(request, timeout=ANSWER_S))
            served = False
            for answer in stub.ModelStreamInfer(iter([request]), timeout=ANSWER_S):
                check_error(answer.error_message)
                served = _check_outputs(answer.infer_response) or served
            return served
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Fault(f"no answer in {ANSWER_S:g} s") from None
            if "Socket closed" in (error.details() or "") or "connect" in (error.details() or ""):
                raise Fault(f"the connection broke: {error.details()}") from None
            check_error(error.details() or "")
        return False

    return Way("gRPC", grpc_requests(), send)


def _check_outputs(answer: Any) -> bool:
    """Whether an answer has a picture; it is as large as it says, and its report is JSON."""
    served = False
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
        if output.name == "report" and len(raw) > 4:
            json.loads(raw[4:], parse_constant=_no_constant)
        if output.name == "image" and int(np.prod(output.shape)) != len(raw):
            raise Fault(f"an image of shape {list(output.shape)} has {len(raw)} bytes")
        served = served or (output.name in ("image", "b64_json") and len(raw) > 4)
    return served


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
    faults = st.sampled_from(["value", "text", "encoding", "length", "framing"])
    wrong = draw(faults) if draw(seldom(0.25)) else ""
    text = json.dumps(draw(EXTREME | st.lists(EXTREME)) if wrong == "value" else draw(sound))
    kinds = ["cut", "bom", "latin", "twice", "nested", "binary"]
    kind = draw(st.sampled_from(kinds)) if wrong == "text" else "plain"
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
    encoding = draw(st.sampled_from(["gzip", "deflate", "br", "lie"])) if wrong == "encoding" else ""
    if encoding:
        headers.append(b"Content-Encoding: " + (b"gzip" if encoding == "lie" else encoding.encode()))
        body = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)(body)
    if wrong == "length":
        length = draw(st.sampled_from([b"99999999999", b"-1", b"0", b"7", b"%d" % len(text), b"x", b""]))
        headers.append(b"Inference-Header-Content-Length: " + length)
    framing = draw(st.sampled_from(["chunks", "short"])) if wrong == "framing" else "length"
    if framing == "chunks":
        size = draw(st.sampled_from([1, 7, 1000]))
        parts = [body[i : i + size] for i in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        headers.append(b"Transfer-Encoding: chunked")
    else:
        headers.append(b"Content-Length: %d" % (len(body) - (framing == "short" and len(body) > 2)))
    return body, headers


def _http_way(
    name: str, host: str, usual: list[str], others: list[str], sound: st.SearchStrategy[Any], extra: bytes = b""
) -> Way:
    @st.composite
    def requests(draw: Any) -> tuple[str, str, tuple[bytes, list[bytes]]]:
        methods = st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
        method = draw(methods) if draw(seldom(0.05)) else "POST"
        path = draw(st.sampled_from(others if draw(seldom(0.1)) else usual))
        return method, path, draw(bodies(sound))

    def send(request: tuple[str, str, tuple[bytes, list[bytes]]]) -> bool:
        method, path, (body, headers) = request
        lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: x", b"Connection: close", extra, *headers]
        status, answer = http_exchange(host, b"\r\n".join(filter(None, lines)) + b"\r\n\r\n" + body)
        if status == 0:
            raise Fault("the connection was closed without an answer")
        if status >= 400:
            check_error(answer.decode("utf-8", "replace"))
        # 501 is Triton's for a plain call of a stream model.
        if status >= 500 and status != 501 and method != "HEAD" and not any(told in answer for told in _FORESEEN):
            raise Fault(f"status {status}: {answer[:300]!r}")
        return status == 200 and (b"b64_json" in answer or b'"image"' in answer)

    return Way(name, requests(), send)


@st.composite
def _infer_bodies(draw: Any) -> dict[str, Any]:
    inputs: list[Any] = []
    for name, value in draw(fields()).items():
        inputs.append({"name": name, "datatype": TYPES.get(name, "BYTES"), "shape": [1], "data": [value]})
    if draw(seldom(0.3)):
        broken = draw(st.sampled_from(inputs))
        what = draw(st.sampled_from(["shape", "datatype", "data", "parameters", "name"]))
        parameters = st.sampled_from(
            [{"binary_data_size": 5}, {"binary_data_size": -9}, {"shared_memory_region": "x"}, 3]
        )
        kinds = {"shape": WRONG_SHAPES, "datatype": DATATYPES, "parameters": parameters, "name": EXTREME}
        broken[what] = draw(kinds.get(what, EXTREME))
        if what == "parameters":
            del broken["data"]
    strange = st.dictionaries(st.sampled_from(["id", "parameters", "outputs", "x"]), EXTREME, max_size=1)
    return {"inputs": inputs, **(draw(strange) if draw(seldom(0.2)) else {})}


def infer_way(host: str) -> Way:
    """HTTP's infer."""
    others = ["/v2/models/swan_stream/infer", "/v2/models/x/infer"]
    return _http_way("infer", host, ["/v2/models/swan/infer"], others, _infer_bodies())


def generate_way(host: str) -> Way:
    """HTTP's generate, both ways, and whatever else has an address."""
    others = ["/v2", "/v2/health/ready", "/v2/repository/index", "/v2/models/stats", "/v2/models/%2e%2e/config", "/x"]
    others += [
        "/v2/models/swan/generate_stream",
        "/v2/models/swan_stream/generate",
        "/v2/models/swan/versions/9/generate",
    ]
    usual = ["/v2/models/swan/generate", "/v2/models/swan_stream/generate_stream"]
    return _http_way("generate", host, usual, others, fields())


def front_way(host: str) -> Way:
    """The front's routes."""
    names = st.sampled_from(
        ["n", "size", "stream", "partial_images", "model", "output_format", "user", "seed", "url", "response_format"]
    )
    values = st.sampled_from([None, 1, 2, True, "64x64", "auto", "png", "webp", "swan", "", "x", "b64_json", "url"])

    @st.composite
    def sound(draw: Any) -> dict[str, Any]:
        request = {name: each for name, each in draw(fields()).items() if name != "response_format"}
        request.pop("width", None)  # with the height it must agree with size
        return request | (draw(st.dictionaries(names, values | EXTREME, max_size=3)) if draw(seldom(0.4)) else {})

    others = [
        "/v1/images/edits",
        "/v1/models",
        "/v1/models/swan",
        "/v1/models/%00",
        "/healthz",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/videos",
        "/v1/videos/video_1/content",
        "/sdapi/v1/txt2img",
        "/",
    ]
    extra = b"Content-Type: application/json"
    return _http_way("front", host, ["/v1/images/generations"], others, sound(), extra)
