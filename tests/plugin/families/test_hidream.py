"""HiDream beyond what every family is tested for: experts, padding, published schedulers, sizes, requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, HiDreamImagePipeline
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU

from plugin.config import PipelineSource
from plugin.denoising.events import NoEvents, Pixels
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.engines import make_engine
from plugin.families import family_of
from plugin.families.base import BlockInputs
from plugin.families.hidream import DenseExperts, HiDreamFamily
from plugin.request import GenerationRequest, ResponseFormat
from taylorseer import CacheConfig
from tests.support.tiny import latents_of
from tests.support.tiny.hidream import tiny_hidream

OFF = CacheConfig(interval=1)
TEXT = {"prompt": "a red apple", "max_sequence_length": 16, "height": 112, "width": 144}
GUIDED = {**TEXT, "negative_prompt": "ugly", "guidance_scale": 5.0}
MAX_SEQ, WIDTH = 8 * 8, 32  # of the transformer
Folder = Callable[[], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return lambda: tmp_path_factory.mktemp("hidream")


@pytest.fixture(scope="module")
def hidream(folder: Folder) -> HiDreamImagePipeline:
    """A tiny HiDream-I1, shared: tests must not change it."""
    return tiny_hidream(folder())


def call_of(height: int, width: int, batch: int = 2) -> dict[str, Any]:
    """A call of the transformer itself, which takes latents of any size."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(batch, 4, height, width, generator=generator),
        "timesteps": torch.full((batch,), 500.0),
        "encoder_hidden_states_t5": torch.randn(batch, 9, 32, generator=generator),
        "encoder_hidden_states_llama3": torch.randn(3, batch, 7, 24, generator=generator),
        "pooled_embeds": torch.randn(batch, 40, generator=generator),
        "return_dict": False,
    }


def block_inputs_of(pipe: HiDreamImagePipeline, height: int, width: int, batch: int = 2) -> BlockInputs:
    family = family_of(pipe.transformer)
    inputs = {"attention_kwargs": None, "hidden_states_masks": None, **call_of(height, width, batch)}
    with torch.no_grad():
        return family.embed(inputs, family.condition(inputs, {}), {})


# Experts


def moe_of(dtype: torch.dtype, activated: int) -> MOEFeedForwardSwiGLU:
    torch.manual_seed(0)
    return MOEFeedForwardSwiGLU(16, 64, num_routed_experts=5, num_activated_experts=activated).to(dtype).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("activated", [1, 2, 5])
def test_dense_experts_give_what_the_sparse_ones_give(dtype, tolerance, activated):
    moe = moe_of(dtype, activated)
    tokens = torch.randn(2, 7, 16, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(DenseExperts(moe)(tokens), moe(tokens), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activated", [1, 2, 5])
def test_experts_that_were_not_chosen_count_nothing(activated):
    moe = moe_of(torch.float32, activated)
    tokens = torch.randn(2, 7, 16)
    chosen, weights, _ = moe.gate(tokens)
    every = DenseExperts(moe).gate_weights(tokens)
    assert every.shape == (2, 7, 5)
    assert (every.count_nonzero(dim=-1) == activated).all()
    assert torch.equal(every.view(14, 5).gather(1, chosen), weights)


def test_the_exported_stack_shares_the_weights_and_leaves_the_transformer_as_it_is(hidream):
    family = family_of(hidream.transformer)
    before = [(name, type(module)) for name, module in hidream.transformer.named_modules()]
    exported, blocks = family.export_stack(), family.block_stack()
    assert [(name, type(module)) for name, module in hidream.transformer.named_modules()] == before
    assert {name: id(weight) for name, weight in exported.named_parameters()} == {
        name: id(weight) for name, weight in blocks.named_parameters()
    }
    kinds = [type(module) for module in exported.modules()]
    assert MOEFeedForwardSwiGLU not in kinds
    assert kinds.count(DenseExperts) == 2 + 3


# Padding


@pytest.mark.parametrize("size", [(32, 64), (16, 16), (48, 48), (80, 48)])
def test_cache_off_is_bit_for_bit_however_much_is_padding(hidream, size):
    call = call_of(*size)
    served = PipelineHost(hidream).pipeline_for(OFF)
    served.scheduler.set_timesteps(2)
    with torch.no_grad():
        assert torch.equal(served.transformer(**call)[0], hidream.transformer(**call)[0])


def test_masks_are_ones_for_square_latents_and_end_where_the_padding_begins_for_others(hidream):
    square, wide = (block_inputs_of(hidream, *size)["hidden_states_masks"] for size in ((32, 32), (32, 64)))
    assert torch.equal(square, torch.ones(2, 4))
    assert torch.equal(wide, (torch.arange(MAX_SEQ) < 8).float().expand(2, -1))


@pytest.mark.parametrize("size", [(32, 64), (16, 32), (48, 48), (16, 16)])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_exported_stack_takes_every_size_text_and_padding(hidream, engine_cache, size, batch):
    family, inputs = family_of(hidream.transformer), block_inputs_of(hidream, *size, batch)
    with torch.no_grad():
        expected, output = (make_engine(name, family, engine_cache).run(inputs) for name in ("torch", "onnxruntime"))
        inputs["hidden_states_masks"] = 1 - inputs["hidden_states_masks"]
        other = make_engine("torch", family).run(inputs)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert (other - expected).abs().max() > 1e-3, "the masks must have counted"


# Schedulers


@pytest.mark.parametrize("guidance", [{"guidance_scale": 0.0}, {"guidance_scale": 5.0}], ids=["none", "one batch"])
@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchLCMScheduler(shift=6.0), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)],
    ids=["dev", "euler"],
)
def test_cache_off_is_bit_for_bit_with_other_schedulers(folder, scheduler, guidance):
    pipe = tiny_hidream(folder())
    pipe.scheduler = scheduler
    served = PipelineHost(pipe).pipeline_for(OFF)
    torch.manual_seed(1)  # the pipeline hands its generator on to no step, so dev's noise comes from this one
    expected = latents_of(pipe, **TEXT, **guidance)
    torch.manual_seed(1)
    assert torch.equal(latents_of(served, **TEXT, **guidance), expected)


# What runs when


def test_forecast_steps_run_neither_blocks_nor_what_only_they_need(folder):
    pipe = tiny_hidream(folder())
    blocks = ("x_embedder", "pe_embedder", "caption_projection.0", "caption_projection.5", "single_stream_blocks.0")
    calls = dict.fromkeys((*blocks, "p_embedder", "t_embedder", "final_layer"), 0)
    for name in calls:
        pipe.transformer.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    latents_of(PipelineHost(pipe).pipeline_for(CacheConfig(interval=5, warmup_steps=3)), steps=13, **GUIDED)
    once = dict.fromkeys(("pe_embedder", "caption_projection.0", "caption_projection.5", "p_embedder"), 1)
    assert calls == {**dict.fromkeys(blocks, 5), **once, "t_embedder": 13, "final_layer": 13}


def test_released_blocks_are_not_needed_by_the_engine(folder, engine_cache):
    pipe = tiny_hidream(folder())
    expected = latents_of(pipe, **GUIDED)
    host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache, release_blocks=True)
    assert not pipe.transformer.double_stream_blocks
    assert not pipe.transformer.single_stream_blocks
    difference = (latents_of(host.pipeline_for(OFF), **GUIDED) - expected).abs().max()
    assert difference <= 1e-3 * expected.abs().max()


def test_a_folder_as_it_was_published_loads_with_a_llama_from_elsewhere(hidream, folder):
    path = folder()
    hidream.save_pretrained(path)
    index = json.loads((path / "model_index.json").read_text())
    components = []
    for name in ("text_encoder_4", "tokenizer_4"):
        del index[name]
        components.append((name, str(shutil.move(path / name, folder()))))
    (path / "model_index.json").write_text(json.dumps(index))
    pipe = load_pipeline(PipelineSource(str(path), components=tuple(components)))
    expected = latents_of(hidream, **GUIDED)
    # loading aligns the weights in memory otherwise, and so rounds otherwise
    assert (latents_of(PipelineHost(pipe).pipeline_for(OFF), **GUIDED) - expected).abs().max() <= 1e-4


# Requests


def request(**changes: Any) -> GenerationRequest:
    fields: dict[str, Any] = {
        "prompt": "a red apple",
        "negative_prompt": "ugly",
        "class_label": None,
        "seed": 0,
        "num_inference_steps": 6,
        "guidance_scale": 5.0,
        "height": 32,
        "width": 32,
        "num_frames": 1,
        "fps": 16,
        "cache": CacheConfig(interval=3, warmup_steps=1),
        "deadline_ms": None,
        "response_format": ResponseFormat.RAW,
        "preview": True,
    }
    return GenerationRequest(**{**fields, **changes})


@pytest.mark.parametrize(("guidance_scale", "batch"), [(0.0, 1), (5.0, 2)])
def test_a_request_makes_a_picture_of_the_area_that_the_pipeline_is_made_for(hidream, guidance_scale, batch):
    class Previews(NoEvents):
        def __init__(self) -> None:
            self.shapes: list[tuple[int, ...]] = []

        def progress(self, step: int, num_steps: int, preview: Pixels | None) -> None:
            self.shapes += [] if preview is None else [preview.shape]

    events, wanted = Previews(), request(guidance_scale=guidance_scale)
    generation = generate(PipelineHost(hidream), wanted, events, max_sequence_length=16, preview_interval=2)
    assert generation.image.shape == (1, 128, 128, 3)
    assert events.shapes == [(128, 128, 3)] * 2
    report = generation.report
    assert (report.full_steps, report.engine_calls) == ([0, 3], 2)
    assert report.cache_bytes == 2 * batch * MAX_SEQ * WIDTH * 4
    assert PipelineHost(hidream).family.guidance_branches(wanted) == batch


def test_a_negative_prompt_counts(hidream):
    pictures = [
        generate(PipelineHost(hidream), request(negative_prompt=prompt), max_sequence_length=16).image
        for prompt in ("ugly", "a red apple")
    ]
    assert (pictures[0] != pictures[1]).any()


def test_a_request_of_no_length_of_text_leaves_it_to_the_pipeline(hidream):
    family, fields = family_of(hidream.transformer), ("prompt", "negative_prompt", "guidance_scale", "height", "width")
    arguments = family.call_arguments(request(), None)
    assert arguments == {name: getattr(request(), name) for name in fields}
    assert family.call_arguments(request(), 64) == {**arguments, "max_sequence_length": 64}


@pytest.mark.parametrize("size", [(128, 128), (16, 16), (16, 64), (112, 144), (448, 576), (2048, 512)])
def test_latent_size_is_the_one_that_the_pipeline_scales_to(hidream, size):
    family, wanted = family_of(hidream.transformer), request(height=size[0], width=size[1])
    latents = latents_of(hidream, steps=1, **family.call_arguments(wanted, 16))
    assert family.latent_size(hidream.transformer.config, wanted, (1, 1)) == (1, *latents.shape[2:])


def test_latent_sizes_of_the_published_models_have_an_area_of_128_squared():
    config = {"max_resolution": (128, 128), "patch_size": 2, "num_attention_heads": 20, "attention_head_dim": 128}
    family = HiDreamFamily
    sizes = [
        family.latent_size(config, request(height=height, width=width), (1, 8))
        for height, width in ((512, 512), (768, 1360), (1360, 768))
    ]
    assert sizes == [(1, 128, 128), (1, 96, 170), (1, 170, 96)]
    assert [family.feature_shape(config, size) for size in sizes] == [(4096, 2560)] * 3


def test_the_preview_of_the_final_latents_is_the_picture(hidream):
    latents = latents_of(hidream, **GUIDED)
    picture = hidream(
        **GUIDED, num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    preview = family_of(hidream.transformer).preview_latents(hidream, torch.cat([latents, latents + 1]), 112, 144)
    with torch.no_grad():
        pixels = hidream.vae.decode(preview).sample
    torch.testing.assert_close((pixels / 2 + 0.5).clamp(0, 1), picture)


def test_what_is_not_served_is_refused_by_name(hidream):
    served = PipelineHost(hidream).pipeline_for(OFF)
    with pytest.raises(ValueError, match="attention_kwargs has scale, must be empty"):
        latents_of(served, attention_kwargs={"scale": 0.5}, **TEXT)
    with pytest.raises(ValueError, match="hidden_states_masks is given, must be left out"):
        served.transformer(**call_of(32, 64), hidden_states_masks=torch.ones(2, MAX_SEQ))


def test_cached_elements_of_every_module_are_those_of_image_and_text(hidream):
    config = hidream.transformer.config
    elements = family_of(hidream.transformer).module_features(config, MAX_SEQ, 16)
    assert elements == 2 * (2 + 3) * (MAX_SEQ + 3 * 16) * WIDTH
