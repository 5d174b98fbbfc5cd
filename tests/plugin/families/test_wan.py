"""Wan beyond what every family is tested for: image to video, two experts, timesteps of tokens, the autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline
from PIL import Image

from plugin.denoising.events import NoEvents, Pixels
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.transformer import StepObserver
from plugin.request import GenerationRequest, ResponseFormat
from taylorseer import CacheConfig, StepKind
from tests.support.recursion import Recursion
from tests.support.tiny import latents_of
from tests.support.tiny.wan import tiny_wan, tiny_wan_image_to_video

OFF = CacheConfig(interval=1)
SIZE = {"height": 32, "width": 48, "num_frames": 5}
TEXT = {"prompt": "a red apple", "max_sequence_length": 16, **SIZE}
GUIDED = {**TEXT, "negative_prompt": "ugly", "guidance_scale": 3.0}
TOKENS, WIDTH = 2 * 2 * 3, 32  # of the transformer for SIZE
Folder = Callable[[], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return lambda: tmp_path_factory.mktemp("wan")


@pytest.fixture(scope="module")
def wan(folder: Folder) -> WanPipeline:
    """A tiny Wan2.1, shared: tests must not change it."""
    return tiny_wan(folder())


def two_experts(folder: Folder) -> WanPipeline:
    """Of 12 steps the second expert makes those from step 6 on."""
    return tiny_wan(folder(), boundary_ratio=0.8)


def picture_of(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def image_to_video(text_tokens: int = 512) -> dict[str, Any]:
    """The arguments of an image-to-video call. Its pipeline cleans prompts with ftfy, which need not be installed."""
    prompts = torch.randn(2, 1, text_tokens, 32, generator=torch.Generator().manual_seed(1))
    return {
        "image": picture_of(48, 32),
        "prompt_embeds": prompts[0],
        "negative_prompt_embeds": prompts[1],
        "guidance_scale": 3.0,
        **SIZE,
    }


def test_cache_off_is_bit_for_bit_with_the_euler_scheduler(folder):
    pipe = tiny_wan(folder())
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **GUIDED), latents_of(pipe, **GUIDED))


def test_cache_off_is_bit_for_bit_where_loading_keeps_modules_in_float32(wan, folder):
    saved = folder()
    wan.save_pretrained(saved)
    pipe = WanPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert pipe.transformer.proj_out.weight.dtype == torch.bfloat16
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **GUIDED), latents_of(pipe, **GUIDED))


def test_forecast_steps_run_neither_blocks_nor_what_only_they_need(folder):
    pipe = tiny_wan(folder())
    names = ("patch_embedding", "rope", "condition_embedder.text_embedder", "condition_embedder.time_proj", "blocks.0")
    calls = dict.fromkeys((*names, "condition_embedder.time_embedder", "norm_out"), 0)
    for name in calls:
        pipe.transformer.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    latents_of(PipelineHost(pipe).pipeline_for(CacheConfig(interval=5, warmup_steps=3)), steps=13, **TEXT)
    every_step = {"condition_embedder.time_embedder": 13, "norm_out": 2 * 13}  # the first for both branches
    assert calls == {**dict.fromkeys(names, 2 * 5), "condition_embedder.text_embedder": 2, **every_step}


# Image to video


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("image_encoder", [True, False], ids=["image encoder", "channels only"])
def test_image_to_video_is_bit_for_bit_the_plain_pipeline(folder, image_encoder, dtype):
    pipe = tiny_wan_image_to_video(folder(), image_encoder=image_encoder, dtype=dtype)
    plain = latents_of(pipe, **image_to_video())
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **image_to_video()), plain)
    other = latents_of(pipe, **{**image_to_video(), "image": picture_of(64, 64)})
    assert not torch.equal(other, plain), "the picture must have counted"


def test_image_to_video_runs_in_onnxruntime_for_any_batch_and_size(folder, engine_cache):
    pipe = tiny_wan_image_to_video(folder(), image_encoder=True)
    host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache)
    two_prompts = dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), torch.randn(2, 512, 32))
    for more in ({}, {"height": 16, "num_frames": 9}, two_prompts):
        arguments = {**image_to_video(), **more}
        expected = latents_of(pipe, **arguments)
        difference = (latents_of(host.pipeline_for(OFF), **arguments) - expected).abs().max()
        assert difference <= 1e-3 * expected.abs().max()


def test_image_to_video_over_the_components_of_text_to_video_keeps_its_options(folder):
    """Wan2.2's small model makes both; without its timesteps of tokens the picture's frame would be noised."""
    pipe = tiny_wan(folder(), expand_timesteps=True)
    plain = WanImageToVideoPipeline(**pipe.components, expand_timesteps=True)
    plain.set_progress_bar_config(disable=True)
    served = PipelineHost(pipe).pipeline_for(OFF, pipeline_class=WanImageToVideoPipeline)
    assert served.config.expand_timesteps
    arguments = image_to_video(text_tokens=16)
    assert torch.equal(latents_of(served, **arguments), latents_of(plain, **arguments))


def test_what_diffusers_would_take_for_the_picture_is_refused(folder):
    served = PipelineHost(tiny_wan_image_to_video(folder(), image_encoder=True)).pipeline_for(OFF)
    with pytest.raises(ValueError, match="encoder_hidden_states has 16 tokens, must have 512"):
        latents_of(served, **image_to_video(text_tokens=16))
    with pytest.raises(ValueError, match="encoder_hidden_states_image is left out, must be given"):
        served.transformer(torch.zeros(1, 36, 2, 4, 4), torch.ones(1), torch.zeros(1, 512, 32))


# A timestep for each token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("prompt", [{}, {"prompt": ["a red apple", "a blue house"], "negative_prompt": ["", "ugly"]}])
def test_timesteps_of_tokens_are_bit_for_bit_the_plain_pipeline(folder, prompt, dtype):
    pipe = tiny_wan(folder(), dtype=dtype, expand_timesteps=True)
    arguments = {**GUIDED, **prompt}
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **arguments), latents_of(pipe, **arguments))


# Two experts


@pytest.mark.parametrize("guidance", [{}, {"guidance_scale_2": 1.5}], ids=["one scale", "two scales"])
def test_two_experts_are_bit_for_bit_the_plain_pipeline(folder, guidance):
    pipe = two_experts(folder)
    arguments = {**GUIDED, **guidance}
    served = PipelineHost(pipe).pipeline_for(OFF)
    assert torch.equal(latents_of(served, steps=12, **arguments), latents_of(pipe, steps=12, **arguments))


def test_two_experts_of_image_to_video_are_bit_for_bit_the_plain_pipeline(folder):
    pipe = tiny_wan_image_to_video(folder(), image_encoder=False, boundary_ratio=0.8)
    served = PipelineHost(pipe).pipeline_for(OFF)
    arguments = image_to_video(text_tokens=16)
    assert torch.equal(latents_of(served, steps=12, **arguments), latents_of(pipe, steps=12, **arguments))


def test_the_second_expert_alone_is_bit_for_bit_the_plain_pipeline(folder):
    both = tiny_wan(folder(), boundary_ratio=1.0)
    pipe = WanPipeline(**{**both.components, "transformer": None}, boundary_ratio=1.0)
    pipe.set_progress_bar_config(disable=True)
    served = PipelineHost(pipe).pipeline_for(CacheConfig(interval=3, warmup_steps=1))
    latents_of(served, steps=7, **GUIDED)
    assert served.transformer_2.session.full_steps == (0, 3, 6)
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **GUIDED), latents_of(pipe, **GUIDED))


class ReferenceOfExperts:
    """TaylorSeer on the plain pipeline of two experts, by hooks before their output norms: each branch of each expert
    has a recursion of its own, which begins at the expert's first step."""

    def __init__(self, pipe: WanPipeline, config: CacheConfig, num_steps: int, branches: int) -> None:
        self.planned = config.full_steps(num_steps)
        self.config = config
        self.branches = branches
        self.calls = 0
        self.recursions: dict[tuple[str, int], Recursion] = {}
        self.full: set[int] = set()
        for name in ("transformer", "transformer_2"):
            getattr(pipe, name).norm_out.register_forward_pre_hook(
                lambda _, arguments, name=name: self.swap(name, arguments[0])
            )

    def swap(self, expert: str, features: torch.Tensor) -> torch.Tensor:
        step, branch = divmod(self.calls, self.branches)
        self.calls += 1
        new = Recursion(self.config.order, self.config.warmup_steps)
        recursion = self.recursions.setdefault((expert, branch), new)
        if recursion is new or step in self.planned:
            recursion.full(step, features.double())
            self.full.add(step)
        return recursion.forecast(step).float()


class CacheSizes(StepObserver):
    def __init__(self) -> None:
        self.pipe: Any = None
        self.calls: list[tuple[int, int, StepKind]] = []  # (step, bytes, kind) of each call of a transformer

    def step_computed(self, step: int, kind: StepKind) -> None:
        self.calls.append((step, self.pipe.transformer.session.nbytes, kind))


@pytest.mark.parametrize(("order", "warmup_steps"), [(1, 2), (2, 1), (0, 0), (1, 7)])
def test_the_cache_begins_anew_with_the_second_expert(folder, order, warmup_steps):
    config = CacheConfig(interval=4, order=order, warmup_steps=warmup_steps)
    pipe, steps, switch = two_experts(folder), 12, 6
    observer = CacheSizes()
    observer.pipe = served = PipelineHost(pipe).pipeline_for(config, observer)
    cached = latents_of(served, steps=steps, **GUIDED)
    uncached = latents_of(pipe, steps=steps, **GUIDED)
    reference = ReferenceOfExperts(pipe, config, steps, branches=2)
    expected = latents_of(pipe, steps=steps, **GUIDED)
    assert (cached - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (uncached - expected).abs().max() > 1e-4 * expected.abs().max(), "the cache must have done something"

    assert served.transformer_2.session.full_steps == tuple(sorted(reference.full))
    assert [kind for step, _, kind in observer.calls if step == switch] == [StepKind.FULL] * 2
    branch_bytes = (order + 1) * TOKENS * WIDTH * 4
    sizes = [nbytes for _, nbytes, _ in observer.calls]
    expert = [branch_bytes, *[2 * branch_bytes] * 100]  # the first call of an expert writes the first branch
    assert sizes == expert[: 2 * switch] + expert[: 2 * (steps - switch)]


# The autoencoder


def test_videos_decoded_together_are_what_they_are_alone(wan):
    """AutoencoderKLWan keeps the frames in progress on itself."""
    host = PipelineHost(wan)

    def run(seed: int) -> np.ndarray:
        torch.set_num_threads(1)
        return host.pipeline_for(OFF)(
            **{**TEXT, "num_frames": 17},
            num_inference_steps=1,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).frames

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("channels", [16, 36], ids=["text to video", "image to video"])
def test_the_preview_of_the_final_latents_is_the_first_frame(wan, channels):
    arguments = {**TEXT, "num_inference_steps": 2, "return_dict": False}
    latents = wan(**arguments, generator=torch.Generator().manual_seed(0), output_type="latent")[0]
    video = wan(**arguments, generator=torch.Generator().manual_seed(0), output_type="pt")[0]  # (1, frames, 3, h, w)
    given = torch.cat([latents, torch.ones(1, channels - 16, *latents.shape[2:])], dim=1)
    preview = PipelineHost(wan).family.preview_latents(wan, given, 32, 48)
    assert preview.shape == (1, 16, 1, 4, 6)
    with torch.no_grad():
        frame = wan.vae.decode(preview).sample[0, :, 0]
    torch.testing.assert_close((frame / 2 + 0.5).clamp(0, 1), video[0, 0])


# Requests


def request() -> GenerationRequest:
    return GenerationRequest(
        prompt="a red apple",
        negative_prompt="ugly",
        class_label=None,
        seed=0,
        num_inference_steps=6,
        guidance_scale=3.0,
        fps=16,
        cache=CacheConfig(interval=3, warmup_steps=1),
        deadline_ms=None,
        response_format=ResponseFormat.RAW,
        preview=True,
        **SIZE,
    )


def test_a_request_makes_a_video_and_previews_of_its_first_frame(wan):
    class Previews(NoEvents):
        shapes: list[tuple[int, ...]]

        def __init__(self) -> None:
            self.shapes = []

        def progress(self, step: int, num_steps: int, preview: Pixels | None) -> None:
            self.shapes += [] if preview is None else [preview.shape]

    events = Previews()
    generation = generate(PipelineHost(wan), request(), events, max_sequence_length=16, preview_interval=2)
    assert generation.image.shape == (5, 32, 48, 3)
    assert events.shapes == [(32, 48, 3)] * 2
    assert (generation.report.full_steps, generation.report.engine_calls) == ([0, 3], 2 * 2)


def test_a_request_of_no_length_of_text_leaves_it_to_the_pipeline(wan):
    family = PipelineHost(wan).family
    arguments = family.call_arguments(request(), None)
    assert arguments == {"prompt": "a red apple", "negative_prompt": "ugly", "guidance_scale": 3.0, **SIZE}
    assert family.call_arguments(request(), 64) == {**arguments, "max_sequence_length": 64}


def test_adapters_of_a_request_are_refused_by_name(wan):
    with pytest.raises(ValueError, match="attention_kwargs has scale, must be empty"):
        latents_of(PipelineHost(wan).pipeline_for(OFF), attention_kwargs={"scale": 0.5}, **TEXT)


def test_released_blocks_are_not_needed_by_the_engine(folder, engine_cache):
    pipe = two_experts(folder)
    expected = latents_of(pipe, steps=7, **GUIDED)
    host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache, release_blocks=True)
    assert not pipe.transformer.blocks
    assert not pipe.transformer_2.blocks
    difference = (latents_of(host.pipeline_for(OFF), steps=7, **GUIDED) - expected).abs().max()
    assert difference <= 1e-3 * expected.abs().max()


def test_cached_elements_of_every_module_are_those_of_the_image_tokens(wan):
    family = PipelineHost(wan).family
    assert family.module_features(wan.transformer.config, TOKENS, 16) == 3 * 3 * TOKENS * WIDTH
