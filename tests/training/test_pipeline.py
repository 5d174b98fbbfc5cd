"""The shipped pipeline folder, and that training packs latents as the pipeline unpacks them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from tests.support.paths import REPOSITORY
from training.data import STYLES, prompt_of, trained_concepts

# Not imported from the training modules, which need packages that serving does not.
PIPELINE = REPOSITORY / "emoji" / "1" / "pipeline"
MAX_SEQUENCE_LENGTH = 16
PICTURE_VARIANCE = 100.0  # of 8-bit values; the flattest trained picture, a cloud, has 195


@pytest.fixture(scope="module")
def pipe() -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(PIPELINE, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def all_prompts() -> list[str]:
    return [prompt_of(concept, style) for concept in trained_concepts() for style in STYLES]


def test_folder_is_small_and_its_weights_are_safetensors() -> None:
    files = [path for path in PIPELINE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    folders = {path.parent.name for path in files if path.suffix == ".safetensors"}
    assert folders == {"transformer", "text_encoder", "text_encoder_2", "vae"}


def test_every_prompt_fits_without_unknown_tokens(pipe: FluxPipeline) -> None:
    prompts = all_prompts()
    t5_ids = pipe.tokenizer_2(prompts).input_ids
    assert max(map(len, t5_ids)) <= MAX_SEQUENCE_LENGTH
    assert not any(pipe.tokenizer_2.unk_token_id in ids for ids in t5_ids)
    # CLIP's unknown token is its end token: more than the one at the end means that something was unknown.
    clip_ids = pipe.tokenizer(prompts).input_ids
    assert max(map(len, clip_ids)) <= pipe.tokenizer.model_max_length
    assert all(ids.count(pipe.tokenizer.eos_token_id) == 1 for ids in clip_ids)


def test_different_prompts_have_different_tokens(pipe: FluxPipeline) -> None:
    prompts = all_prompts()
    assert len({tuple(ids) for ids in pipe.tokenizer_2(prompts).input_ids}) == len(prompts)


def picture(pipe: FluxPipeline, prompt: str, seed: int, steps: int = 8) -> np.ndarray:
    """(64, 64, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        prompt,
        num_inference_steps=steps,
        guidance_scale=3.0,
        height=64,
        width=64,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        generator=generator,
        output_type="np",
    ).images[0]


def test_the_seed_decides_the_picture(pipe: FluxPipeline) -> None:
    first = picture(pipe, "red apple, 3d", seed=1)
    assert first.shape == (64, 64, 3)
    assert np.isfinite(first).all()
    assert np.array_equal(first, picture(pipe, "red apple, 3d", seed=1))
    assert not np.array_equal(first, picture(pipe, "red apple, 3d", seed=2))


@pytest.mark.parametrize(
    ("prompt", "channel"), [("red apple, 3d", 0), ("four leaf clover, flat", 1), ("blue heart, noto", 2)]
)
def test_the_prompt_decides_the_colour_on_white(pipe: FluxPipeline, prompt: str, channel: int) -> None:
    made = picture(pipe, prompt, seed=1, steps=20)
    corners = made[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 0.8  # all sets are drawn on white
    colour = made[16:48, 16:48].mean((0, 1))
    assert colour.argmax() == channel
    assert colour.max() - np.median(colour) > 0.1
    assert made.var() * 255**2 > PICTURE_VARIANCE


def test_packed_latents_unpack_to_themselves() -> None:
    latents = torch.randn(2, 8, 16, 16)
    packed = FluxPipeline._pack_latents(latents, 2, 8, 16, 16)
    assert packed.shape == (2, 64, 32)
    assert torch.equal(FluxPipeline._unpack_latents(packed, 64, 64, vae_scale_factor=4), latents)


def test_autoencoder_keeps_a_picture(pipe: FluxPipeline) -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((rows - 32) ** 2 + (columns - 32) ** 2 < 400).float()
    picture = (1 - 2 * disc * torch.tensor([0.1, 0.9, 0.9])[:, None, None])[None]  # a red disc on white
    with torch.no_grad():
        output = pipe.vae.decode(pipe.vae.encode(picture).latents).sample
    psnr = -10 * ((output.clamp(-1, 1) - picture) / 2).square().mean().log10()
    assert psnr > 20  # of real pictures it is about 31 dB
