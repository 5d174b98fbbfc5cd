"""Variants of declared families against the plain diffusers pipeline: off bit for bit, on as the recursion, and what
engines are made for is what the blocks get."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from plugin.denoising.host import PipelineHost
from taylorseer import CacheConfig
from tests.support.reference_forecast import ReferenceForecast
from tests.support.tiny import TinyFamily, block_inputs_of, latents_of
from tests.support.tiny.variants import VARIANTS

STEPS = 8
OFF = CacheConfig(interval=1)
ON = CacheConfig(interval=3, order=2, warmup_steps=1, cooldown_steps=1)
Make = Callable[[str, torch.dtype], DiffusionPipeline]


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The tiny pipeline of a variant in a dtype, shared: tests must not change it."""
    return cache(lambda name, dtype: VARIANTS[name].make(tmp_path_factory.mktemp(name), dtype))


def arguments_of(family: TinyFamily, guidance: str, size: int = 0) -> dict[str, Any]:
    return {**family.arguments, **family.sizes[size], **family.guidance[guidance].arguments}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_cache_off_is_bit_for_bit_the_plain_pipeline(pipeline_of, name, dtype):
    """At each size, with each kind of guidance in turn."""
    family, pipe = VARIANTS[name], pipeline_of(name, dtype)
    for size, guidance in zip(range(len(family.sizes)), cycle(family.guidance), strict=False):
        arguments = arguments_of(family, guidance, size)
        served = PipelineHost(pipe).pipeline_for(OFF)
        assert torch.equal(latents_of(served, **arguments), latents_of(pipe, **arguments)), (guidance, size)
        assert served.transformer.session.engine_calls == 5 * family.guidance[guidance].calls


@pytest.mark.parametrize("name", VARIANTS)
def test_cache_on_equals_the_recursion_written_out(pipeline_of, name):
    family, pipe = VARIANTS[name], pipeline_of(name, torch.float32)
    for guidance, kind in family.guidance.items():
        arguments = arguments_of(family, guidance)
        served = PipelineHost(pipe).pipeline_for(ON)
        cached = latents_of(served, steps=STEPS, **arguments)
        assert served.transformer.session.full_steps == ON.full_steps(STEPS)
        uncached = latents_of(pipe, steps=STEPS, **arguments)
        expected = forecast(pipe, family, kind.calls, arguments)
        # float32: the forecast sums in another order, and guidance multiplies the difference of two of them
        assert (cached - expected).abs().max() <= 3e-5 * expected.abs().max(), guidance
        assert (uncached - expected).abs().max() > 1e-4 * expected.abs().max(), "the cache must have done something"


def forecast(pipe: Any, family: TinyFamily, calls: int, arguments: dict[str, Any]) -> torch.Tensor:
    """The latents of the plain pipeline with the recursion in the place of the blocks."""
    reference = ReferenceForecast(pipe.transformer.get_submodule(family.feature_module), ON, STEPS, calls)
    try:
        return latents_of(pipe, steps=STEPS, **arguments)
    finally:
        reference.handle.remove()


@pytest.mark.parametrize("name", VARIANTS)
def test_example_calls_give_the_blocks_what_the_pipelines_calls_give(pipeline_of, name):
    """The same arguments (masks where every token counts may be missing), of the same dtypes and axes: engines are made
    for those of the example call."""
    family = VARIANTS[name]
    arguments = arguments_of(family, [*family.guidance][-1])
    served, inputs = block_inputs_of(family, pipeline_of(name, torch.bfloat16), arguments)
    examples = served.example_inputs()
    assert {argument: (each.dtype, each.ndim) for argument, each in inputs.items()} == {
        argument: (each.dtype, each.ndim) for argument, each in examples.items() if argument in inputs
    }
    assert all("mask" in argument for argument in examples.keys() - inputs.keys())
