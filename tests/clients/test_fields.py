"""What a field takes in Python: its own type, numpy's, and nothing that would be converted without a word."""

from __future__ import annotations

from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from triton_taylorseer_client import InvalidArgument
from triton_taylorseer_client.fields import request_inputs


class Style(str, Enum):  # noqa: UP042  # older than StrEnum, whose text is its value
    NOTO = "star, noto"


def sent(**fields: Any) -> Any:
    """The value in the one tensor of a request, as bytes, int, float or bool."""
    (tensor,) = request_inputs(**fields)
    kind = {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4", "BOOL": "?"}
    raw = tensor._get_content()
    return raw[4:] if tensor.datatype() == "BYTES" else np.frombuffer(raw, kind[tensor.datatype()])[0].item()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("prompt", "Käse 🧀", "Käse 🧀".encode()),
        ("prompt", np.str_("star"), b"star"),
        ("prompt", Style.NOTO, b"star, noto"),
        ("seed", 2**63 - 1, 2**63 - 1),
        ("seed", np.int64(2**40), 2**40),
        ("height", np.uint8(64), 64),
        ("height", -(2**31), -(2**31)),
        ("guidance_scale", 3, 3.0),
        ("guidance_scale", np.float32(0.5), 0.5),
        ("guidance_scale", np.float64(1.5), 1.5),
        ("guidance_scale", np.int32(2), 2.0),
        ("guidance_scale", Fraction(1, 4), 0.25),
        ("guidance_scale", float("inf"), float("inf")),  # the server says what it must be
        ("preview", True, True),
        ("preview", np.bool_(False), False),
    ],
)
def test_a_value_of_the_fields_type_is_sent_as_it_is(field: str, value: object, expected: object):
    assert sent(**{field: value}) == expected


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("prompt", ["a"], "prompt is ['a'], must be text"),
        ("prompt", 5, "prompt is 5, must be text"),
        ("prompt", {"text": "star"}, "prompt is {'text': 'star'}, must be text"),
        ("prompt", b"star", "prompt is b'star', must be text"),
        ("prompt", np.array(["a"]), "prompt is array(['a'], dtype='<U1'), must be text"),
        ("cache_schedule", [0, 4, 9], "cache_schedule is [0, 4, 9], must be text"),
        ("height", 64.5, "height is 64.5, must be an integer"),
        ("height", 64.0, "height is 64.0, must be an integer"),
        ("height", np.float32(64), "height is 64.0, must be an integer"),
        ("height", "64", "height is '64', must be an integer"),
        ("seed", True, "seed is True, must be an integer"),
        ("seed", np.bool_(True), "seed is True, must be an integer"),
        ("seed", {}, "seed is {}, must be an integer"),
        ("seed", float("nan"), "seed is nan, must be an integer"),
        ("seed", 2**63, f"seed is {2**63}, must be from {-(2**63)} to {2**63 - 1}"),
        ("guidance_scale", "abc", "guidance_scale is 'abc', must be a number"),
        ("guidance_scale", [3], "guidance_scale is [3], must be a number"),
        ("guidance_scale", True, "guidance_scale is True, must be a number"),
        ("guidance_scale", 1j, "guidance_scale is 1j, must be a number"),
        ("guidance_scale", 1e308, "guidance_scale is 1e+308, must be a number that 32 bits hold"),
        ("guidance_scale", 10**400, "must be a number that 32 bits hold"),
        ("cache_max_error", 1e-60, "cache_max_error is 1e-60, must be a number that 32 bits hold"),
        ("preview", "no", "preview is 'no', must be true or false"),
        ("preview", 1, "preview is 1, must be true or false"),
    ],
)
def test_another_value_is_named_with_what_it_must_be(field: str, value: object, sentence: str):
    with pytest.raises(InvalidArgument) as caught:
        request_inputs(**{field: value})
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{field} is ")


def test_an_integer_of_more_digits_than_python_writes_is_refused():
    with pytest.raises(InvalidArgument, match="height is too long to show, must be from -2147483648 to 2147483647"):
        request_inputs(height=10**5000)


@pytest.mark.parametrize("value", ["x" * 100_000, [["x" * 1000] * 1000] * 1000, object(), {"a": {"b": {"c": {}}}}])
def test_a_long_value_is_shortened(value: object):
    with pytest.raises(InvalidArgument) as caught:
        request_inputs(height=value)
    assert len(str(caught.value)) < 200
