"""The fields of a request, from values in Python to tensors; nothing is converted without a word."""

from __future__ import annotations

import math
import operator
import reprlib
from numbers import Real
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from clients.messages import INPUTS, InvalidArgument

_NUMPY: dict[str, Any] = {
    "BYTES": np.object_,
    "INT64": np.int64,
    "INT32": np.int32,
    "FP32": np.float32,
    "BOOL": np.bool_,
}
_LONGEST = 120  # characters of a value in a message
_SHOWN = reprlib.Repr()  # does not write out the whole of a large value first
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60


def request_inputs(**fields: Any) -> list[triton.InferInput]:
    """The tensors of a request; fields that are None are left out.

    Raises:
        TypeError: an unknown field.
        InvalidArgument: a value of a wrong type, or one that its tensor cannot hold.
    """
    unknown = sorted(set(fields) - set(INPUTS))
    if unknown:
        raise TypeError(f"{unknown[0]!r} is not a field, must be one of: {', '.join(INPUTS)}")
    inputs = []
    for name, value in fields.items():
        if value is None:
            continue
        tensor = triton.InferInput(name, [1], INPUTS[name])
        tensor.set_data_from_numpy(np.array([_encoded(name, value)], dtype=_NUMPY[INPUTS[name]]))
        inputs.append(tensor)
    return inputs


def _encoded(name: str, value: Any) -> Any:
    match INPUTS[name]:
        case "BYTES":
            return _text(name, value)
        case "FP32":
            return _number(name, value)
        case "BOOL":
            if not isinstance(value, bool | np.bool_):
                raise InvalidArgument(f"{name} is {_shown(value)}, must be true or false")
            return value
        case _:
            return _integer(name, value)


def _text(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} is {_shown(value)}, must be text")
    try:
        return str.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{name} is invalid at character {error.start}, must be Unicode text") from None


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool | np.bool_):  # an integer to Python
        raise InvalidArgument(f"{name} is {_shown(value)}, must be an integer")
    try:
        integer = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name} is {_shown(value)}, must be an integer") from None
    limits = np.iinfo(_NUMPY[INPUTS[name]])
    if not limits.min <= integer <= limits.max:  # numpy would wrap it around
        raise InvalidArgument(f"{name} is {_shown(value)}, must be from {limits.min} to {limits.max}")
    return integer


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidArgument(f"{name} is {_shown(value)}, must be a number")
    try:
        number = float(value)
        with np.errstate(over="ignore"):
            sent = float(np.float32(number))
    except OverflowError:
        raise InvalidArgument(f"{name} is {_shown(value)}, must be a number that 32 bits hold") from None
    if math.isinf(sent) != math.isinf(number) or (sent == 0) != (number == 0):
        raise InvalidArgument(f"{name} is {_shown(value)}, must be a number that 32 bits hold")
    return number


def _shown(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()  # numpy's own text says the type too
    try:
        text = _SHOWN.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "too long to show"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
