"""Checks the JSON of a request, and writes it again, so that Triton reads what was checked and nothing else.

Triton 24.10 ends where JSON is nested deeply, and where a shape's product is absurd it takes the memory before it
looks at the data.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NoReturn

from plugin.fields import FIELDS
from plugin.ops.guard.refusals import CLASSIFICATION, Refused

MAX_BODY_BYTES = 32 << 20
_MAX_PARTS = 200_000  # brackets and commas: what parsing costs, besides one copy of long text
_BITS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
_RANGES = {name: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for name, bits in _BITS.items()} | {
    f"U{name}": (0, 2**bits - 1) for name, bits in _BITS.items()
}
_FIELDS = {field.name: field.type.removeprefix("TYPE_") for field in FIELDS}
_MAX_DIGITS = 308  # of what a double holds: Triton refuses more with a status of 500
_TOO_LARGE = "a number of the JSON is beyond what a double holds"
_MAX_FP32 = 3.4028234663852886e38


def decoded(body: bytes, encoding: str) -> bytes:
    """A body without its content encoding.

    Raises:
        Refused: the encoding is unknown, damaged, or the body is larger than `MAX_BODY_BYTES` without it.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise Refused(f"Content-Encoding is {encoding[:40]!r}, must be one of: identity, gzip, deflate", 415)
    reading = zlib.decompressobj(wbits=47)  # either of the two formats
    try:
        plain = reading.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise Refused(f"the body is not {encoding}, as Content-Encoding says") from None
    if len(plain) > MAX_BODY_BYTES:
        raise Refused(f"the body without its {encoding} is larger than {MAX_BODY_BYTES} bytes", 413)
    if not reading.eof:
        raise Refused(f"the body's {encoding} is cut off")
    return plain


def checked_generate(body: bytes) -> bytes:
    """The body of a call of `/generate` or `/generate_stream`.

    Raises:
        Refused: it is no JSON object, or a number does not fit its input.
    """
    fields = _parsed(body)
    for name, datatype in _FIELDS.items():
        _check_numbers(name, datatype, fields.get(name))
    return _written(fields)


def checked_infer(body: bytes, header_length: str | None) -> tuple[bytes, str | None]:
    """The body of a call of `/infer`, and the length of its JSON where binary data follows.

    Args:
        body: JSON, or JSON and then binary data.
        header_length: the header Inference-Header-Content-Length, or None.

    Raises:
        Refused: the length or the JSON is none, or a shape does not fit its data.
    """
    end = len(body) if header_length is None else _length(header_length, len(body))
    request = _parsed(body[:end])
    if not isinstance(request.get("parameters", {}), dict):
        raise Refused("parameters are no JSON object")
    for tensor in _objects(request, "inputs"):
        _check_tensor(tensor)
    for output in _objects(request, "outputs"):
        if "classification" in (output.get("parameters") or {}):
            raise Refused(CLASSIFICATION)
    written = _written(request)
    return written + body[end:], None if header_length is None else str(len(written))


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= most):
        raise Refused(f"Inference-Header-Content-Length is {text[:40]!r}, must be from 0 to {most}, the body's length")
    return int(text)


def _parsed(body: bytes) -> dict[str, Any]:
    parts = sum(map(body.count, (b"[", b"{", b",")))
    if parts > _MAX_PARTS:
        raise Refused(f"the JSON has {parts} brackets and commas, must have at most {_MAX_PARTS}", 413)
    try:
        parsed = json.loads(body, parse_constant=_no_number, parse_int=_integer, object_pairs_hook=_distinct)
    except RecursionError:
        raise Refused("the JSON is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, or an integer of thousands of digits
        raise Refused(f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(parsed, dict):
        raise Refused("the body is no JSON object")
    return parsed


def _written(parsed: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused("a text of the JSON has half of a surrogate pair, must be Unicode") from None
    except ValueError:
        raise Refused(_TOO_LARGE) from None
    except RecursionError:
        raise Refused("the JSON is nested too deeply") from None


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise Refused(_TOO_LARGE)
    return int(text)


def _no_number(name: str) -> NoReturn:
    raise Refused(f"the JSON has {name}, must have finite numbers")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ: which one of two counts is each parser's own choice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(f"{twice[:64]!r} is in one JSON object twice")
    return found


def _objects(request: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    listed = request.get(name, [])
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise Refused(f"{name} is no list of JSON objects")
    for each in listed:
        if not isinstance(each.get("parameters", {}), dict):
            raise Refused(f"parameters of {name} are no JSON object")
        yield each


def _check_tensor(tensor: Mapping[str, Any]) -> None:
    name = str(tensor.get("name"))[:64]
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise Refused(f"shape of {name} is {str(shape)[:100]}, must be a list of integers from 0")
    if "data" not in tensor:
        return
    values = [*_flat(tensor["data"])]
    if math.prod(shape) != len(values):
        raise Refused(
            f"shape of {name} is {str(shape)[:100]}, must have as many values as data, which has {len(values)}"
        )
    _check_numbers(name, str(tensor.get("datatype")), values)


def _flat(data: Any) -> Iterator[Any]:
    if not isinstance(data, list):
        yield data
        return
    for each in data:
        yield from _flat(each)


def _check_numbers(name: str, datatype: str, value: Any) -> None:
    """Triton 24.10 cuts an integer that does not fit to its lowest bits, and makes a float infinite."""
    for each in value if isinstance(value, list) else [value]:
        if type(each) is int and datatype in _RANGES:
            low, high = _RANGES[datatype]
            if not low <= each <= high:
                shown = str(each) if abs(each) < 10**40 else "a number of more than 40 digits"
                raise Refused(f"{name} is {shown}, must be from {low} to {high}: it is {datatype}")
        if type(each) in (int, float) and datatype == "FP32" and abs(each) > _MAX_FP32:
            raise Refused(f"{name} is {Decimal(each):.6g}, must be from -3.4e38 to 3.4e38: it is FP32")
