"""A tiny Allegro: 3 blocks with cross attention, an autoencoder of 8x in space and 4x in time, 4 latent channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    EulerAncestralDiscreteScheduler,
)

from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_text_model, t5_tokenizer


def tiny_allegro(folder: Path, *, dtype: torch.dtype = torch.float32) -> AllegroPipeline:
    """An AllegroPipeline of random weights, with a scheduler that adds noise at each step, as the published one.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = AllegroPipeline(
        tokenizer=t5_tokenizer(folder),
        text_encoder=t5_text_model().eval(),
        vae=_autoencoder(),
        transformer=_transformer(),
        scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="linspace"),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer() -> AllegroTransformer3DModel:
    return AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,  # rotary positions take a third for each axis
        num_layers=3,
        cross_attention_dim=24,
        sample_height=8,
        sample_width=8,
        sample_frames=2,
        caption_channels=32,
    ).eval()


def _autoencoder() -> AutoencoderKLAllegro:
    autoencoder = AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    ).eval()
    autoencoder.enable_tiling()  # it cannot decode without
    return autoencoder


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_allegro(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16, "clean_caption": False},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=(
        {"height": 64, "width": 64, "num_frames": 5},
        {"height": 32, "width": 128, "num_frames": 5},
        {"height": 48, "width": 32, "num_frames": 9},
    ),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 7.5}),
    },
    feature_module="norm_out",
)
