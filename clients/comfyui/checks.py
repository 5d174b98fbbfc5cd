"""Holds the values of a request to a model's limits before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from triton_taylorseer_client import InvalidArgument
from triton_taylorseer_client.shown import shown

from .limits import Limits

MAX_SEED = 2**63 - 1
MOST_PICTURES = 64  # of one node in one run, for each picture that goes in
AS_THE_PRESET = "as the preset"
PREDICTORS = ("taylor", "newton", "hermite", "chebyshev", "spectrum", "foca", "reuse")
COORDINATES = ("step", "sigma", "log_snr")

Rule = Callable[[Any, Limits], "str | None"]  # what the value must be, None where it is

# A widget always has a value; with this one the model's own is used, as if the field were left out.
_LEFT_OUT: Mapping[str, Any] = {
    **dict.fromkeys(("prompt", "negative_prompt", "cache_preset", "cache_schedule"), ""),
    **dict.fromkeys(("height", "width", "num_frames", "strength"), 0),
    **dict.fromkeys(("cache_interval", "cache_max_error", "cache_min_interval", "cache_max_full_steps"), 0),
    **dict.fromkeys(("class_label", "cache_order", "cache_warmup_steps", "cache_cooldown_steps"), -1),
    **dict.fromkeys(("cache_predictor", "cache_coordinate"), AS_THE_PRESET),
}


def fields_of(widgets: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that widgets set: those of their names, without those that say to leave them out."""
    return {name: value for name, value in widgets.items() if not _is_left_out(name, value)}


def check(fields: Mapping[str, Any], limits: Limits) -> None:
    """Refuses a value that the model does not accept.

    Raises:
        InvalidArgument: the first such value; the message names field, value and range.
    """
    for name, value in fields.items():
        if name in _RULES and (range_of := _RULES[name](value, limits)) is not None:
            raise InvalidArgument(f"{name} is {shown(value)}, must be {range_of}")


def refusal(widgets: Mapping[str, Any], limits: Limits) -> str | None:
    """The sentence for the first value of some widgets that is not accepted; None where there is none."""
    try:
        check(fields_of(widgets), limits)
    except InvalidArgument as error:
        return str(error)
    return None


def _is_left_out(name: str, value: Any) -> bool:
    if isinstance(value, str):
        value = value if value.strip() else ""
    return value is None or (name in _LEFT_OUT and not isinstance(value, bool) and bool(value == _LEFT_OUT[name]))


def _is_integer(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _integer(low: int, high: Callable[[Limits], int] | int) -> Rule:
    def rule(value: Any, limits: Limits) -> str | None:
        most = high if isinstance(high, int) else high(limits)
        return None if _is_integer(value, low, most) else f"an integer from {low} to {most}"

    return rule


def _number(low: float, high: float, range_of: str, *, open_below: bool = False) -> Rule:
    def rule(value: Any, _: Limits) -> str | None:
        is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        inside = is_number and low <= value <= high and not (open_below and value == low)
        return None if inside else range_of

    return rule


def _one_of(*values: str) -> Rule:
    return lambda value, _: None if value in values else f"one of: {', '.join(values)}"


def _text(most: Callable[[Limits], int] | int) -> Rule:
    def rule(value: Any, limits: Limits) -> str | None:
        longest = most if isinstance(most, int) else most(limits)
        fits = isinstance(value, str) and len(value.encode("utf-8", "replace")) <= longest
        return None if fits else f"a text of at most {longest} bytes of UTF-8"

    return rule


def _side(value: Any, limits: Limits) -> str | None:
    low, high, multiple = limits.min_size, limits.max_size, limits.size_multiple
    if _is_integer(value, low, high) and value % multiple == 0:
        return None
    return f"{'an integer' if multiple == 1 else f'a multiple of {multiple}'} from {low} to {high}"


def _frames(value: Any, limits: Limits) -> str | None:
    high, multiple = limits.max_frames, limits.frames_multiple
    if _is_integer(value, 1, high) and (value - 1) % multiple == 0:
        return None
    if high == 1:
        return "1: the model makes pictures"
    return f"an integer from 1 to {high}" if multiple == 1 else f"1 + a multiple of {multiple} from 1 to {high}"


_STEPS = _integer(1, 1000)
_RULES: Mapping[str, Rule] = {
    "prompt": _text(lambda limits: limits.max_prompt_bytes),
    "negative_prompt": _text(lambda limits: limits.max_prompt_bytes),
    "class_label": _integer(0, lambda limits: limits.num_classes - 1),
    "seed": _integer(0, MAX_SEED),
    "num_inference_steps": _integer(1, lambda limits: limits.max_steps),
    "guidance_scale": _number(0, 100, "a number from 0 to 100"),
    "height": _side,
    "width": _side,
    "num_frames": _frames,
    "strength": _number(0, 1, "a number above 0, up to 1", open_below=True),
    "batch_size": _integer(1, MOST_PICTURES),
    "cache_preset": _text(64),
    "cache_interval": _STEPS,
    "cache_order": _integer(0, 8),
    "cache_warmup_steps": _integer(0, 1000),
    "cache_cooldown_steps": _integer(0, 1000),
    "cache_predictor": _one_of(*PREDICTORS),
    "cache_schedule": _text(8192),
    "cache_coordinate": _one_of(*COORDINATES),
    "cache_max_error": _number(0, math.inf, "a finite number above 0", open_below=True),
    "cache_min_interval": _STEPS,
    "cache_max_full_steps": _STEPS,
}
