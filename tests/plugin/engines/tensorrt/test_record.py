"""Records: which engine of the cache fits, and what is said of those that do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from plugin.engines.base import EngineError
from plugin.engines.tensorrt.record import BuiltEngine, find_engine
from plugin.families import family_of
from tests.support.models import FLAVOUR

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")


def found_with(own: Any, **changes: Any) -> BuiltEngine:
    """The engine that is found for SM89 while its record is changed; the record is put back."""
    record = own.built.path.with_name("engine.json")
    original = record.read_text()
    try:
        record.write_text(json.dumps({**json.loads(original), **changes}))
        return find_engine(own.family, FLAVOUR, "SM89", own.cache)
    finally:
        record.write_text(original)


def test_an_engine_that_does_not_fit_is_named_with_the_reason(own):
    with pytest.raises(EngineError, match=rf"is of {FLAVOUR} 1.2.3, and {trt.__version__} is installed.*Build one"):
        found_with(own, version="1.2.3")
    sentence = r"is for SM89, SM120, and the GPU is SM90.*triton-taylorseer build MODEL --engine"
    with pytest.raises(EngineError, match=sentence):
        find_engine(own.family, FLAVOUR, "SM90", own.cache)
    with pytest.raises(EngineError, match=r"engine\.json is damaged \(.*build the engine again"):
        found_with(own, profiles=None)
    assert find_engine(own.family, FLAVOUR, "SM89", own.cache) == own.built


def test_engine_of_other_weights(compiled, make_flux):
    other = make_flux()
    with torch.no_grad():
        other.transformer.transformer_blocks[0].attn.to_q.bias[0] += 1
    with pytest.raises(EngineError, match=r"holds none for these weights in float32\. Build one"):
        find_engine(family_of(other.transformer), FLAVOUR, "SM89", compiled.cache)
