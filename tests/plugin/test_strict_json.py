"""JSON that every parser reads."""

from __future__ import annotations

import json
import math

from plugin.strict_json import to_json


def test_what_is_not_finite_is_null():
    value = {"audits": [(3, math.inf), (4, 0.5)], "x": math.nan, "y": {"z": [-math.inf]}, "n": 10**30, "t": "Infinity"}
    text = to_json(value)
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == {
        "audits": [[3, None], [4, 0.5]],
        "x": None,
        "y": {"z": [None]},
        "n": 10**30,
        "t": "Infinity",
    }
