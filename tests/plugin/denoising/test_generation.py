"""A request on a host: what becomes of numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugin.config import ModelConfig
from plugin.denoising.events import NoEvents, Pixels
from plugin.denoising.generation import NotFinite, generate
from plugin.denoising.host import PipelineHost
from plugin.engines import make_engine
from plugin.engines.base import Engine
from plugin.engines.packer import PackSettings
from plugin.engines.packing import is_shared, joined
from plugin.families.base import BlockInputs, Family
from plugin.request import GenerationRequest
from taylorseer import CacheConfig
from tests.support.tiny import FAMILIES, block_inputs_of


class Overflowing:
    """The torch engine, whose features have `value` in them in the calls from `first_call` on."""

    name = "overflowing"

    def __init__(self, family: Family, value: float, first_call: int) -> None:
        self._engine = make_engine("torch", family)
        self._value = value
        self._calls_left = first_call

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        features = self._engine.run(inputs, out).clone()
        if self._calls_left == 0:
            features[:, 0, 0] = self._value
        self._calls_left = max(0, self._calls_left - 1)
        return features


class HeldBytes(NoEvents):
    """Adds up what a request's cache holds."""

    def __init__(self) -> None:
        self.most = self.now = 0

    def cache_changed(self, delta_bytes: int) -> None:
        self.now += delta_bytes
        self.most = max(self.most, self.now)


@pytest.fixture
def host_of(make_flux: Callable[..., Any]) -> Callable[..., PipelineHost]:
    """Makes hosts, each of a pipeline of its own, which a test may change."""
    return lambda engine: PipelineHost(make_flux(), engine)


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., GenerationRequest]:
    defaults = ModelConfig.from_parameters({"pipeline": str(tmp_path), "max_sequence_length": "16"}, tmp_path).defaults
    usual = {"height": 16, "width": 16, "num_inference_steps": 6, "cache": CacheConfig(2, 1, 1)}
    return lambda prompt="red apple", **fields: replace(defaults, prompt=prompt, **usual | fields)


def test_forecasts_in_a_run_of_few_steps_are_warned_about(host_of, request_of) -> None:
    host = host_of("torch")

    def warnings(**fields: Any) -> list[str]:
        return generate(host, request_of(**fields), max_sequence_length=16).report.warnings

    (warning,) = warnings(num_inference_steps=9)
    assert warning.startswith("num_inference_steps is 9: in runs of fewer than 10 steps")
    assert not warnings(num_inference_steps=10)
    assert not warnings(num_inference_steps=6, cache=CacheConfig(interval=1))
    assert not warnings(num_inference_steps=3, cache=CacheConfig(interval=5, warmup_steps=3)), "all steps are full"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first_call", [0, 2], ids=["from the first step", "in the last full step"])
def test_features_that_are_not_finite_end_in_an_error_and_give_their_memory_back(
    host_of, request_of, value: float, first_call: int
) -> None:
    host = host_of(lambda family: Overflowing(family, value, first_call))
    held = HeldBytes()
    with pytest.raises(NotFinite, match=r"the picture has values that are not finite: .*another seed, guidance_scale"):
        generate(host, request_of(), held, max_sequence_length=16)
    assert held.now == 0
    assert held.most > 0


def test_a_request_of_numbers_that_are_not_finite_leaves_its_company_alone(host_of, request_of) -> None:
    """Both are in every engine call of two rows; the text encoder is what fails one of them."""
    host = host_of("torch")
    host.pack(PackSettings(2, fixed_rows=2, max_wait_s=5.0))
    encode = host.pipe.encode_prompt

    def encode_prompt(prompt: Any, **more: Any) -> tuple[torch.Tensor, ...]:
        embeds, pooled, ids = encode(prompt, **more)
        return embeds * (math.nan if "poison" in str(prompt) else 1.0), pooled, ids

    host.pipe.__dict__["encode_prompt"] = encode_prompt

    def picture(prompt: str) -> Pixels | None:
        try:
            return generate(host, request_of(prompt), max_sequence_length=16).image
        except NotFinite:
            return None

    alone = picture("red apple")
    with ThreadPoolExecutor(2) as pool:
        poisoned, other = pool.map(picture, ["poison", "red apple"])
    assert poisoned is None
    assert alone is not None
    assert other is not None
    assert np.array_equal(other, alone)


@pytest.mark.parametrize("first", [True, False], ids=["first row", "last row"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_nan_leave_the_other_rows_of_an_engine_call_alone(tmp_path: Path, name: str, first: bool) -> None:
    tiny = FAMILIES[name]
    pipe = tiny.make(tmp_path, torch.float32)
    family, inputs = block_inputs_of(tiny, pipe, {**tiny.arguments, **tiny.sizes[0]})
    poisoned = {
        name: tensor if is_shared(family, name) or not tensor.is_floating_point() else torch.full_like(tensor, math.nan)
        for name, tensor in inputs.items()
    }
    engine: Engine = make_engine("torch", family)
    rows = len(inputs["hidden_states"])
    with torch.no_grad():
        alone = engine.run(inputs).clone()
        together = engine.run(joined(family, [inputs, poisoned] if first else [poisoned, inputs]))
    ours, theirs = together.split(rows) if first else reversed(together.split(rows))
    assert theirs.isnan().all()
    torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)  # float32 rounding at another batch
