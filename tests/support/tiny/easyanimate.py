"""A tiny EasyAnimate: 2 blocks with their own weights for text and 1 without, 8x in space and 4x in time."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLMagvit,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)

from tests.support.tiny.encoders_videos import chat_tokenizer, fill_zeros, qwen2_vl
from tests.support.tiny.family import Guidance, TinyFamily


def tiny_easyanimate(folder: Path, *, dtype: torch.dtype = torch.float32) -> EasyAnimatePipeline:
    """An EasyAnimatePipeline of random weights, with 256 tokens of text, which is no argument of its call.

    Args:
        folder: not used.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = EasyAnimatePipeline(
        vae=_autoencoder(),
        text_encoder=qwen2_vl(),
        tokenizer=chat_tokenizer(),
        transformer=fill_zeros(_transformer()),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer() -> EasyAnimateTransformer3DModel:
    return EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=8,
        sample_height=8,
        num_layers=3,
        mmdit_layers=2,
        time_embed_dim=8,
        add_norm_text_encoder=True,
        text_embed_dim=24,
    ).eval()


def _autoencoder() -> AutoencoderKLMagvit:
    return AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3),
        up_block_types=("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_easyanimate(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "guidance_scale": 1.0},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=(
        {"height": 64, "width": 64, "num_frames": 5},
        {"height": 32, "width": 128, "num_frames": 5},
        {"height": 48, "width": 32, "num_frames": 9},
    ),
    guidance={
        "none": Guidance(),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 5.0}),  # it fails without negative prompt
    },
    feature_module="norm_final",
)
