"""Every declared family against the plain diffusers pipeline: off bit for bit, on as the recursion, beside others as
alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from plugin.denoising.host import PipelineHost
from taylorseer import CacheConfig
from tests.support.reference_forecast import ReferenceForecast
from tests.support.tiny import TinyFamily, block_inputs_of, latents_of
from tests.support.tiny.declared import DECLARED

OFF = CacheConfig(interval=1)
Make = Callable[[str, torch.dtype], DiffusionPipeline]


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The tiny pipeline of a family in a dtype, shared: tests must not change it."""
    return cache(lambda family, dtype: DECLARED[family].make(tmp_path_factory.mktemp(family), dtype))


def arguments_of(family: TinyFamily, guidance: str, size: int = 0) -> dict[str, Any]:
    return {**family.arguments, **family.sizes[size], **family.guidance[guidance].arguments}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", DECLARED)
def test_cache_off_is_bit_for_bit_the_plain_pipeline(pipeline_of, name, dtype):
    """With each kind of guidance, each at another size, and two prompts at once."""
    family, pipe = DECLARED[name], pipeline_of(name, dtype)
    for size, (guidance, kind) in enumerate(family.guidance.items()):
        arguments = arguments_of(family, guidance, size)
        served = PipelineHost(pipe).pipeline_for(OFF)
        assert torch.equal(latents_of(served, **arguments), latents_of(pipe, **arguments)), guidance
        assert getattr(served, family.transformer).session.engine_calls == 5 * kind.calls
    if family.batch:
        arguments = {**arguments_of(family, guidance, 2), **family.batch}
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * 2
        served = PipelineHost(pipe).pipeline_for(OFF)
        assert torch.equal(latents_of(served, **arguments), latents_of(pipe, **arguments)), "two prompts"


@pytest.mark.parametrize("name", ["sana", "sana_video"])
def test_a_tokenizer_pads_where_the_pipeline_says(name, tmp_path):
    """Gemma's pads at the left until Sana's pipelines, in each call, have it pad at the right."""
    family = DECLARED[name]
    arguments = {**arguments_of(family, "none"), "complex_human_instruction": ["the sun of "]}

    def fresh() -> DiffusionPipeline:
        pipe = family.make(tmp_path, torch.float32)
        pipe.tokenizer.padding_side = "left"
        return pipe

    served = latents_of(PipelineHost(fresh()).pipeline_for(OFF), **arguments)
    assert torch.equal(served, latents_of(fresh(), **arguments))


@pytest.mark.parametrize("name", DECLARED)
def test_cache_on_equals_the_recursion_written_out(pipeline_of, name):
    family, pipe, steps = DECLARED[name], pipeline_of(name, torch.float32), 12
    config = CacheConfig(interval=4, order=2, warmup_steps=1, cooldown_steps=1)
    for guidance, kind in family.guidance.items():
        arguments = arguments_of(family, guidance)
        served = PipelineHost(pipe).pipeline_for(config)
        cached = latents_of(served, steps=steps, **arguments)
        assert getattr(served, family.transformer).session.full_steps == config.full_steps(steps)
        uncached = latents_of(pipe, steps=steps, **arguments)
        module = getattr(pipe, family.transformer).get_submodule(family.feature_module)
        reference = ReferenceForecast(module, config, steps, kind.calls)
        try:
            expected = latents_of(pipe, steps=steps, **arguments)
        finally:
            reference.handle.remove()
        # float32: the forecast sums in another order, and guidance multiplies the difference of two of them
        assert (cached - expected).abs().max() <= 3e-5 * expected.abs().max(), guidance
        assert (uncached - expected).abs().max() > 1e-4 * expected.abs().max(), "the cache must have done something"


@pytest.mark.parametrize("name", DECLARED)
def test_eight_at_once_give_what_each_gives_alone(pipeline_of, name):
    """Of every kind of guidance and two sizes of as many tokens, with the cache off and on."""
    family, host = DECLARED[name], PipelineHost(pipeline_of(name, torch.float32))
    caches = OFF, CacheConfig(interval=3, order=1, warmup_steps=1)
    every = [
        (cache, arguments_of(family, guidance, size))
        for cache in caches
        for guidance in family.guidance
        for size in range(len(family.sizes[:2]))
    ]

    def run(request: tuple[CacheConfig, dict[str, Any]]) -> torch.Tensor:
        torch.set_num_threads(1)
        cache, arguments = request
        return latents_of(host.pipeline_for(cache), steps=6, **arguments)

    alone = [run(each) for each in every]
    with ThreadPoolExecutor(len(every)) as pool:
        together = list(pool.map(run, every))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", DECLARED)
def test_example_calls_give_the_blocks_what_the_pipelines_calls_give(pipeline_of, name, dtype):
    """The same arguments (masks where every token counts may be missing), of the same dtypes and axes: engines are made
    for those of the example call."""
    family = DECLARED[name]
    served, inputs = block_inputs_of(family, pipeline_of(name, dtype), arguments_of(family, [*family.guidance][-1]))
    examples = served.example_inputs()
    assert {argument: (each.dtype, each.ndim) for argument, each in inputs.items()} == {
        argument: (each.dtype, each.ndim) for argument, each in examples.items() if argument in inputs
    }
    assert all("mask" in argument for argument in examples.keys() - inputs.keys())
