"""Every family against the plain diffusers pipeline: off bit for bit, on as the recursion, exported as eager."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from plugin.denoising.host import PipelineHost
from plugin.families import family_of
from plugin.families.split import once
from taylorseer import CacheConfig
from tests.support.reference_forecast import ReferenceForecast
from tests.support.tiny import FAMILIES, TinyFamily, latents_of

OFF = CacheConfig(interval=1)
CACHES = {
    "N5 O1": CacheConfig(interval=5, order=1, warmup_steps=3),
    "N4 O2": CacheConfig(interval=4, order=2, warmup_steps=1, cooldown_steps=2),
    "reuse": CacheConfig(interval=3, order=0, warmup_steps=0),
}
Make = Callable[[str, torch.dtype], DiffusionPipeline]


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The tiny pipeline of a family in a dtype, shared: tests must not change it."""
    return cache(lambda family, dtype: FAMILIES[family].make(tmp_path_factory.mktemp(family), dtype))


def cases(*, sizes: bool = False) -> list[Any]:
    return [
        pytest.param(name, guidance, size, id=f"{name}, {guidance}" + (f", size {size}" if sizes else ""))
        for name, family in FAMILIES.items()
        for guidance in family.guidance
        for size in (range(len(family.sizes)) if sizes else [0])
    ]


def arguments_of(family: TinyFamily, guidance: str, size: int) -> dict[str, Any]:
    return {**family.arguments, **family.sizes[size], **family.guidance[guidance].arguments}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "guidance", "size"), cases(sizes=True))
def test_cache_off_is_bit_for_bit_the_plain_pipeline(pipeline_of, name, guidance, size, dtype):
    family, pipe = FAMILIES[name], pipeline_of(name, dtype)
    arguments = arguments_of(family, guidance, size)
    served = PipelineHost(pipe).pipeline_for(OFF)
    assert torch.equal(latents_of(served, **arguments), latents_of(pipe, **arguments))
    assert getattr(served, family.transformer).session.engine_calls == 5 * family.guidance[guidance].calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "guidance", "size"), cases())
def test_cache_off_is_bit_for_bit_for_a_batch_of_two(pipeline_of, name, guidance, size, dtype):
    family, pipe = FAMILIES[name], pipeline_of(name, dtype)
    arguments = {**arguments_of(family, guidance, size), **family.batch}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * 2
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **arguments), latents_of(pipe, **arguments))


@pytest.mark.parametrize("config", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize(("name", "guidance", "size"), cases())
def test_cache_on_equals_the_recursion_written_out(pipeline_of, name, guidance, size, config):
    family, pipe, steps = FAMILIES[name], pipeline_of(name, torch.float32), 16
    arguments = arguments_of(family, guidance, size)
    cached = latents_of(PipelineHost(pipe).pipeline_for(config), steps=steps, **arguments)
    uncached = latents_of(pipe, steps=steps, **arguments)
    module = getattr(pipe, family.transformer).get_submodule(family.feature_module)
    reference = ReferenceForecast(module, config, steps, family.guidance[guidance].calls)
    try:
        expected = latents_of(pipe, steps=steps, **arguments)
    finally:
        reference.handle.remove()
    # float32: the forecast sums in another order, 1e-5 of the latents' size after 16 steps
    assert (cached - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (uncached - expected).abs().max() > 1e-4 * expected.abs().max(), "the cache must have done something"


@pytest.mark.parametrize("name", FAMILIES)
def test_requests_of_as_many_tokens_and_other_sizes_give_together_what_they_give_alone(pipeline_of, name):
    family, host = FAMILIES[name], PipelineHost(pipeline_of(name, torch.float32))
    config = CacheConfig(interval=3, order=1, warmup_steps=1)
    sizes = range(len(family.sizes[:2]))
    every = [arguments_of(family, guidance, size) for guidance in family.guidance for size in sizes]

    def run(arguments: dict[str, Any]) -> torch.Tensor:
        torch.set_num_threads(1)
        return latents_of(host.pipeline_for(config), steps=7, **arguments)

    alone = [run(arguments) for arguments in every]
    with ThreadPoolExecutor(len(every)) as pool:
        together = list(pool.map(run, every))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "guidance", "size"), cases(sizes=True))
def test_onnxruntime_gives_what_torch_gives(pipeline_of, engine_cache, name, guidance, size):
    """One engine for every size and batch, so batch and token axes are dynamic. float32, other summation orders: 1e-3
    of the latents' size after 5 steps of random weights; a wrong table or mask is off by tenths."""
    family, pipe = FAMILIES[name], pipeline_of(name, torch.float32)
    host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache)
    for more in ({}, family.batch if "negative_prompt" not in family.guidance[guidance].arguments else {}):
        arguments = {**arguments_of(family, guidance, size), **more}
        expected = latents_of(pipe, **arguments)
        difference = (latents_of(host.pipeline_for(OFF), **arguments) - expected).abs().max()
        assert difference <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_shape_is_told_from_the_configuration_alone(pipeline_of, name):
    family, pipe = FAMILIES[name], pipeline_of(name, torch.float32)
    seen: list[torch.Size] = []
    module = getattr(pipe, family.transformer).get_submodule(family.feature_module)
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    for size in family.sizes:
        latents_of(pipe, steps=1, **{**family.arguments, **size})
        latent_size = family.latent_size(pipe, size)
        shape = family_of(getattr(pipe, family.transformer)).feature_shape(
            getattr(pipe, family.transformer).config, latent_size
        )
        assert tuple(seen[-1][1:]) == shape
    handle.remove()


def test_what_a_pipeline_gives_at_every_step_is_computed_anew_only_for_another_object():
    constants: dict[str, Any] = {}
    one, other = torch.zeros(1), torch.zeros(1)
    computed = [once(constants, "text", (source,), lambda: object()) for source in (one, one, other, other, one)]
    assert computed[0] is computed[1]
    assert computed[2] is computed[3]
    assert len(set(computed)) == 3, "an equal one is not the same"


def test_what_is_computed_from_a_tensor_is_computed_anew_once_that_is_edited():
    constants: dict[str, Any] = {}
    one, other = torch.zeros(2), torch.zeros(2)

    def compute() -> Any:
        return once(constants, "text", (one, other, one.shape, None), object)

    first = compute()
    assert compute() is first
    one[0] = 1
    second = compute()
    assert second is not first
    assert compute() is second
    other.mul_(2)
    assert compute() is not second


def test_nothing_is_kept_of_what_inference_mode_makes():
    """Nobody counts what is written into it."""
    constants: dict[str, Any] = {}
    with torch.inference_mode():
        source = torch.zeros(1)
    assert once(constants, "text", (source,), object) is not once(constants, "text", (source,), object)


def test_a_timestep_is_embedded_once_for_all_requests_and_the_memory_for_it_is_bounded(flux, monkeypatch):
    family = family_of(flux.transformer)
    computed: list[float] = []

    def embedded(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        timestep = torch.tensor([value], dtype=dtype)
        return family.embedded_once(timestep, None, lambda: computed.append(value) or torch.tensor([[value]]))

    assert [float(embedded(value)) for value in (1.0, 0.5, 1.0)] == [1.0, 0.5, 1.0]
    assert computed == [1.0, 0.5]
    embedded(1.0, torch.float64)
    assert computed == [1.0, 0.5, 1.0], "another dtype is another embedding"
    with torch.autocast("cpu", torch.bfloat16):
        embedded(1.0)
        embedded(1.0)
    assert computed == [1.0, 0.5, 1.0, 1.0], "so is another autocast"
    monkeypatch.setattr("plugin.families.base._MAX_TIMESTEPS", 4)
    for value in range(100):
        embedded(float(value))
    assert len(family._timesteps) <= 4


def test_large_embeddings_are_kept_as_far_as_their_bytes_allow(flux, monkeypatch):
    """Chroma's has two megabytes."""
    family = family_of(flux.transformer)
    monkeypatch.setattr("plugin.families.base._MAX_TIMESTEP_BYTES", 4000)
    for value in range(100):
        family.embedded_once(torch.tensor([float(value)]), None, lambda: torch.zeros(250))
        assert sum(each.nbytes for each in family._timesteps.values()) <= 4000 + 1000
