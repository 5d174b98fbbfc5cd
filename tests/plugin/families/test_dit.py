"""DiT beyond what every family is tested for: its sizes are models, its schedulers may not count steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from plugin.config import PipelineSource
from plugin.denoising.events import NoEvents, Pixels
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.engines import make_engine
from plugin.families import family_of
from plugin.request import GenerationRequest, ResponseFormat
from taylorseer import CacheConfig
from tests.support.tiny import latents_of
from tests.support.tiny.dit import tiny_dit

OFF = CacheConfig(interval=1)
GUIDANCE = {"none": {"guidance_scale": 1.0}, "one batch": {"guidance_scale": 4.0}}
SIDES = (4, 8, 10)  # of the latents: 4, 16 and 25 tokens
LABELS = {"class_labels": [207]}
TOKENS, WIDTH = 4 * 4, 2 * 16  # of the transformer at the default sample_size


@pytest.fixture(scope="module")
def dit() -> DiTPipeline:
    """A tiny DiT, shared: tests must not change it."""
    return tiny_dit()


def with_scheduler(scheduler: type[Any]) -> DiTPipeline:
    pipe = tiny_dit()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    return pipe


# Sizes


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("side", SIDES)
def test_cache_off_is_bit_for_bit_at_every_size(side, dtype, guidance):
    pipe = tiny_dit(sample_size=side, dtype=dtype)
    arguments = {"class_labels": [207, 3], **GUIDANCE[guidance]}
    plain = latents_of(pipe, **arguments)
    assert plain.shape == (2, 2 * side, 2 * side, 3)
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **arguments), plain)


def test_feature_shape_follows_the_size_of_the_latents(dit):
    family, config = family_of(dit.transformer), dit.transformer.config
    assert [family.feature_shape(config, (1, side, side)) for side in SIDES] == [(4, WIDTH), (16, WIDTH), (25, WIDTH)]


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 4, 16, 25])
def test_one_exported_stack_takes_every_size_and_batch(dit, engine_cache, tokens, batch):
    family = family_of(dit.transformer)
    inputs = {
        "hidden_states": torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.linspace(0, 999, batch),
        "class_labels": torch.arange(batch) * 333 + 1,
    }
    with torch.no_grad():
        expected, output = (make_engine(name, family, engine_cache).run(inputs) for name in ("torch", "onnxruntime"))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


# Schedulers


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_cache_off_is_bit_for_bit_with_schedulers_that_count_steps(scheduler, guidance):
    pipe = with_scheduler(scheduler)
    arguments = {**LABELS, **GUIDANCE[guidance]}
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **arguments), latents_of(pipe, **arguments))


def test_one_exported_stack_takes_whole_and_fractional_timesteps(engine_cache):
    for scheduler in (DPMSolverMultistepScheduler, EulerDiscreteScheduler):
        pipe = with_scheduler(scheduler)
        host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache)
        expected = latents_of(pipe, steps=7, **LABELS)
        assert (latents_of(host.pipeline_for(OFF), steps=7, **LABELS) - expected).abs().max() <= 1e-3
        assert pipe.scheduler.timesteps.is_floating_point() == (scheduler is EulerDiscreteScheduler)


@pytest.mark.parametrize("steps", [1, 12, 27])
def test_full_steps_are_the_planned_ones_whether_or_not_the_scheduler_counts(dit, steps):
    config = CacheConfig(interval=4, order=4, warmup_steps=2)
    for pipe in (dit, with_scheduler(DPMSolverMultistepScheduler)):
        served = PipelineHost(pipe).pipeline_for(config)
        latents_of(served, steps=steps, **LABELS)
        assert served.transformer.session.full_steps == config.full_steps(steps)
        assert len(served.transformer.session.records) == steps


# What runs when


def test_forecast_steps_run_neither_blocks_nor_the_patch_embedding():
    pipe = tiny_dit()
    names = ("pos_embed", "transformer_blocks.0.attn1", "transformer_blocks.2.norm1.emb")
    embedder = "transformer_blocks.0.norm1.emb."
    of_output = (embedder + "timestep_embedder", embedder + "class_embedder", "norm_out")
    calls = dict.fromkeys((*names, *of_output), 0)
    for name in calls:
        pipe.transformer.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    latents_of(PipelineHost(pipe).pipeline_for(CacheConfig(interval=5, warmup_steps=3)), steps=13, **LABELS)
    timestep, label, output = of_output  # the block embeds both by itself, and the label does not change
    assert calls == {**dict.fromkeys(names, 5), timestep: 13 + 5, label: 1 + 5, output: 13}


def test_released_blocks_are_not_needed_by_the_engine(engine_cache):
    pipe = tiny_dit()
    expected = latents_of(pipe, **LABELS)
    host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache, release_blocks=True)
    assert not pipe.transformer.transformer_blocks
    assert (latents_of(host.pipeline_for(OFF), **LABELS) - expected).abs().max() <= 1e-3


def test_a_folder_as_it_was_published_loads_as_this_family(dit, tmp_path: Path):
    """DiT's own folders name the class that diffusers had before."""
    dit.save_pretrained(tmp_path)
    for path in (tmp_path / "model_index.json", tmp_path / "transformer/config.json"):
        text = path.read_text()
        assert text.count("DiTTransformer2DModel") == 1
        path.write_text(text.replace("DiTTransformer2DModel", "Transformer2DModel"))
    pipe = load_pipeline(PipelineSource(str(tmp_path)))
    assert type(pipe.transformer) is DiTTransformer2DModel
    assert json.loads((tmp_path / "transformer/config.json").read_text())["_class_name"] == "Transformer2DModel"
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **LABELS), latents_of(dit, **LABELS))


# Requests


def request(**changes: Any) -> GenerationRequest:
    fields: dict[str, Any] = {
        "prompt": None,
        "negative_prompt": None,
        "class_label": 207,
        "seed": 0,
        "num_inference_steps": 6,
        "guidance_scale": 4.0,
        "height": 16,
        "width": 16,
        "num_frames": 1,
        "fps": 16,
        "cache": CacheConfig(interval=3, warmup_steps=1),
        "deadline_ms": None,
        "response_format": ResponseFormat.RAW,
        "preview": True,
    }
    return GenerationRequest(**{**fields, **changes})


@pytest.mark.parametrize(("guidance_scale", "batch"), [(1.0, 1), (4.0, 2)])
def test_a_request_makes_the_picture_of_its_label_and_previews(dit, guidance_scale, batch):
    class Previews(NoEvents):
        def __init__(self) -> None:
            self.shapes: list[tuple[int, ...]] = []

        def progress(self, step: int, num_steps: int, preview: Pixels | None) -> None:
            self.shapes += [] if preview is None else [preview.shape]

    events, wanted = Previews(), request(guidance_scale=guidance_scale)
    generation = generate(PipelineHost(dit), wanted, events, preview_interval=2)
    other = generate(PipelineHost(dit), request(guidance_scale=guidance_scale, class_label=3))
    assert generation.image.shape == (1, 16, 16, 3)
    assert (generation.image != other.image).any()
    assert events.shapes == [(16, 16, 3)] * 2
    report = generation.report
    assert (report.full_steps, report.engine_calls) == ([0, 3], 2)
    assert report.cache_bytes == 2 * batch * TOKENS * WIDTH * 4


def test_the_preview_of_the_final_latents_is_the_picture(dit):
    decoded: list[torch.Tensor] = []
    pipe = PipelineHost(dit).pipeline_for(OFF)
    pipe.vae.decode = lambda latents: decoded.append(latents) or dit.vae.decode(latents)
    picture = latents_of(pipe, guidance_scale=4.0, **LABELS)
    final = decoded[0] * dit.vae.config.scaling_factor
    preview = PipelineHost(dit).family.preview_latents(dit, torch.cat([final, final + 1]), 16, 16)
    with torch.no_grad():
        pixels = dit.vae.decode(preview).sample.permute(0, 2, 3, 1)
    torch.testing.assert_close((pixels / 2 + 0.5).clamp(0, 1), picture)


def test_adapters_of_a_call_are_refused_by_name(dit):
    pipe = PipelineHost(dit).pipeline_for(OFF)
    pipe.scheduler.set_timesteps(2)
    latents, timestep, label = torch.randn(1, 4, 8, 8), pipe.scheduler.timesteps[:1], torch.tensor([207])
    with pytest.raises(ValueError, match="cross_attention_kwargs has scale, must be empty"):
        pipe.transformer(latents, timestep, label, cross_attention_kwargs={"scale": 0.5})


def test_cached_elements_of_every_module_are_those_of_attention_and_feed_forward(dit):
    assert family_of(dit.transformer).module_features(dit.transformer.config, TOKENS, 0) == 2 * 3 * TOKENS * WIDTH
