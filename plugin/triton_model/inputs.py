"""What a request's tensors hold, as `parse_request` takes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from plugin.fields import FIELDS
from plugin.request import InvalidRequest
from plugin.triton_model.backend import Request, Tensor

_LISTS = {field.name for field in FIELDS if field.shape != (1,)}
FILES = ("input_image", "mask_image")


def values_of(request: Request) -> dict[str, Any]:
    """The values of a request by name: text and files as bytes, files in a list, numbers as Python has them.

    Raises:
        InvalidRequest: a tensor has another shape than its input.
    """
    return {tensor.name(): _value(tensor) for tensor in request.inputs()}


def file_bytes_of(values: dict[str, Any]) -> int:
    """Bytes of the files among the values."""
    return sum(len(file) for name in FILES for file in values.get(name, ()))


def _value(tensor: Tensor) -> Any:
    values, is_list = tensor.as_numpy(), tensor.name() in _LISTS
    if values.ndim != 1 or not (is_list or len(values) == 1):
        shape = "[n]" if is_list else "[1]"
        raise InvalidRequest(f"{tensor.name()} has shape {list(values.shape)}, must be {shape}")
    if tensor.name() in FILES:
        return [*values]
    if values.dtype == np.float32:
        return float(str(values[0]))  # 0.6, as its client wrote it, and not 0.6000000238418579
    return values[0] if values.dtype == object else values[0].item()
