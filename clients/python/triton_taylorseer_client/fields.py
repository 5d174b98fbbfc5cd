"""The fields of a request, from values in Python to tensors; nothing is converted without a word."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from triton_taylorseer_client.messages import INPUTS, InvalidArgument
from triton_taylorseer_client.pictures import MOST_PICTURES, picture_files
from triton_taylorseer_client.shown import shown

_NUMPY: dict[str, Any] = {
    "BYTES": np.object_,
    "INT64": np.int64,
    "INT32": np.int32,
    "FP32": np.float32,
    "BOOL": np.bool_,
}


def request_inputs(**fields: Any) -> list[triton.InferInput]:
    """The tensors of a request; fields that are None are left out.

    Raises:
        TypeError: an unknown field.
        InvalidArgument: a value of a wrong type, one that its tensor cannot hold, or a picture that cannot be read.
    """
    unknown = sorted(set(fields) - set(INPUTS))
    if unknown:
        raise TypeError(f"{unknown[0]!r} is not a field, must be one of: {', '.join(INPUTS)}")
    inputs = []
    for name, value in fields.items():
        if value is None:
            continue
        values = picture_files(name, value) if name in MOST_PICTURES else [_encoded(name, value)]
        tensor = triton.InferInput(name, [len(values)], INPUTS[name])
        tensor.set_data_from_numpy(np.array(values, dtype=_NUMPY[INPUTS[name]]))
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
                raise InvalidArgument(f"{name} is {shown(value)}, must be true or false")
            return value
        case _:
            return _integer(name, value)


def _text(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} is {shown(value)}, must be text")
    try:
        return str.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{name} is invalid at character {error.start}, must be Unicode text") from None


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool | np.bool_):  # an integer to Python
        raise InvalidArgument(f"{name} is {shown(value)}, must be an integer")
    try:
        integer = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name} is {shown(value)}, must be an integer") from None
    limits = np.iinfo(_NUMPY[INPUTS[name]])
    if not limits.min <= integer <= limits.max:  # numpy would wrap it around
        raise InvalidArgument(f"{name} is {shown(value)}, must be from {limits.min} to {limits.max}")
    return integer


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidArgument(f"{name} is {shown(value)}, must be a number")
    try:
        number = float(value)
        with np.errstate(over="ignore"):
            sent = float(np.float32(number))
    except OverflowError:
        raise InvalidArgument(f"{name} is {shown(value)}, must be a number that 32 bits hold") from None
    if math.isinf(sent) != math.isinf(number) or (sent == 0) != (number == 0):
        raise InvalidArgument(f"{name} is {shown(value)}, must be a number that 32 bits hold")
    return number
