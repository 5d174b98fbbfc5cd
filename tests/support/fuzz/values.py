"""Values of fields: mostly sound ones, and among them extremes, wrong types and wrong encodings."""

from __future__ import annotations

import base64
import io
import random
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from plugin.fields import FIELDS


def seldom(share: float) -> st.SearchStrategy[bool]:
    """True in about that share of the examples; repeated values of `sampled_from` are no weights to Hypothesis."""
    return st.integers(0, 2**64 - 1).map(lambda number: random.Random(number).random() < share)


def _picture(kind: str) -> str:
    """A picture of 48 x 48 pixels in base64."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((48, 48)).convert("RGB").save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


_WHOLE = [_picture(kind) for kind in ("PNG", "JPEG", "WEBP")]
PICTURES = [*_WHOLE, f"data:image/png;base64,{_WHOLE[0]}", _WHOLE[0][: len(_WHOLE[0]) // 8 * 4], "no picture"]

SOUND: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.sampled_from(["star", "red apple, 3d", "pizza, noto", "x", "é 🍎 \u202e"]),
    "negative_prompt": st.sampled_from(["", " ", "blue"]),
    "class_label": st.just(0),
    "seed": st.integers(0, 2**63 - 1),
    "num_inference_steps": st.integers(1, 4),
    "guidance_scale": st.floats(0, 100, width=32),
    "height": st.sampled_from([32, 48, 64]),
    "width": st.sampled_from([32, 48, 64]),
    "num_frames": st.just(1),
    "input_image": st.sampled_from(PICTURES),
    "mask_image": st.sampled_from(PICTURES[:2]),
    "strength": st.floats(0, 1, width=32),
    "cache_preset": st.sampled_from(["default", "paper"]),
    "cache_interval": st.integers(1, 10),
    "cache_order": st.integers(0, 8),
    "cache_warmup_steps": st.integers(0, 5),
    "cache_cooldown_steps": st.integers(0, 5),
    "cache_predictor": st.sampled_from(["taylor", "reuse", "newton", "hermite", "chebyshev", "spectrum", "foca"]),
    "cache_schedule": st.sampled_from(["interval", "even", "0", "0 2", "0 1 3 of 4"]),
    "cache_coordinate": st.sampled_from(["step", "sigma", "log_snr"]),
    "cache_max_error": st.floats(1e-6, 10),
    "cache_min_interval": st.integers(1, 5),
    "cache_max_full_steps": st.integers(1, 5),
    "deadline_ms": st.sampled_from([1, 50, 10_000, 20_000, 60_000]),
    "priority": st.integers(-60, 60),
    "response_format": st.sampled_from(["raw", "b64_json"]),
    "preview": st.booleans(),
}
assert {field.name for field in FIELDS} <= set(SOUND), "every field is tried"

EXTREME = st.sampled_from(
    [
        *(0, -1, 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400, 0.5, 1e308, 5e-324),
        *(float("nan"), float("inf"), float("-inf"), True, None, "", " ", "\0", "a\0b", "x" * 9000, "9" * 5000),
        *("\ud800", "\u2028", "../../etc/passwd", "%s%n", "0 4 9 of 0", "0 " * 3000, [], [[]], [1, 2], {}, {"a": 1}),
    ]
)
NAMES = st.sampled_from([*SOUND, "steps", "taylorseer_ping", "taylorseer_cancel", "priority", "x", ""]) | st.text(
    max_size=8
)


@st.composite
def fields(draw: Any) -> dict[str, Any]:
    """A request of little work: sound, or in a fourth of all cases with up to two fields that are not."""
    names = [name for name in SOUND if name not in ("prompt", "num_inference_steps", "class_label")]
    chosen = draw(st.lists(st.sampled_from(names), max_size=5, unique=True))
    if "input_image" not in chosen:
        chosen = [name for name in chosen if name not in ("mask_image", "strength")]
    request = {name: draw(SOUND[name]) for name in ("prompt", "num_inference_steps", *chosen)}
    return request | (draw(st.dictionaries(NAMES, EXTREME, max_size=2)) if draw(seldom(0.25)) else {})


WRONG_SHAPES = st.sampled_from(
    [[], [0], [-1], [2], [1, 1], [1] * 50, [2**30], [2**36], [2**62], [2**31, 2**31, 4], [2**62, 0]]
)
DATATYPES = st.sampled_from(
    ["BYTES", "INT64", "INT32", "FP32", "BOOL", "UINT8", "FP16", "BF16", "FP64", "INT8", "UINT64", "", "X", "bytes"]
)
