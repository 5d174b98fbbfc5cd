"""HunyuanVideo: what is particular to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.families.hunyuan_video import HunyuanVideo
from plugin.request import parse_request
from taylorseer import CacheConfig
from tests.support.tiny import FAMILIES, latents_of
from tests.support.tiny.hunyuan_video import tiny_hunyuan_video

FAMILY = FAMILIES["hunyuan_video"]
ARGUMENTS = {**FAMILY.arguments, **FAMILY.sizes[0], "guidance_scale": 6.0}
OFF = CacheConfig(interval=1)


def test_models_without_embedded_guidance_are_bit_for_bit_too():
    pipe = tiny_hunyuan_video(guidance_embeds=False)
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **ARGUMENTS), latents_of(pipe, **ARGUMENTS))


def test_padding_of_the_text_is_not_attended_to():
    """More padding, the same video: float32 sums over more masked keys, 1e-5 of the latents' size."""
    host = PipelineHost(tiny_hunyuan_video(), "torch")
    short, long = (
        latents_of(host.pipeline_for(OFF), **{**ARGUMENTS, "max_sequence_length": tokens}) for tokens in (16, 48)
    )
    assert (short - long).abs().max() <= 1e-5 * short.abs().max()


def test_forecast_steps_run_neither_blocks_nor_the_refiner():
    pipe = tiny_hunyuan_video()
    calls = dict.fromkeys(("x_embedder", "context_embedder", "rope", "transformer_blocks.0", "norm_out"), 0)
    for name in calls:
        module = pipe.transformer.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    latents_of(PipelineHost(pipe).pipeline_for(CacheConfig(interval=5, warmup_steps=1)), steps=11, **ARGUMENTS)
    full = dict.fromkeys(("x_embedder", "context_embedder", "rope", "transformer_blocks.0"), 3)
    assert calls == {**full, "norm_out": 11}


def test_an_engine_that_owns_the_blocks_serves_without_them(engine_cache):
    pipe = tiny_hunyuan_video()
    expected = latents_of(pipe, **ARGUMENTS)
    host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache, release_blocks=True)
    assert not pipe.transformer.transformer_blocks
    assert not pipe.transformer.single_transformer_blocks
    served = latents_of(host.pipeline_for(OFF), **ARGUMENTS)
    assert (served - expected).abs().max() <= 1e-4 * expected.abs().max()  # other summation orders in float32


def test_a_negative_prompt_turns_the_embedded_guidance_off():
    config = ModelConfig.from_parameters({"pipeline": "hub/id"}, Path())
    request = parse_request({"prompt": b"a cat", "guidance_scale": 6.0}, config.defaults, config.limits, 0)
    family = HunyuanVideo(tiny_hunyuan_video().transformer)
    assert family.call_arguments(request, None)["guidance_scale"] == 6.0
    arguments = family.call_arguments(replace(request, negative_prompt="dog"), 256)
    assert (arguments["guidance_scale"], arguments["true_cfg_scale"]) == (1.0, 6.0)
    assert (arguments["negative_prompt"], arguments["max_sequence_length"]) == ("dog", 256)


def test_what_is_not_served_is_refused_by_name():
    pipe = tiny_hunyuan_video()
    served = PipelineHost(pipe).pipeline_for(OFF)
    with pytest.raises(ValueError, match="attention_kwargs has scale, must be empty"):
        latents_of(served, **ARGUMENTS, attention_kwargs={"scale": 0.5})
