"""A tiny LTX-Video: 3 blocks, an autoencoder of 32x in space and 8x in time, 8 latent channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_text_model, t5_tokenizer


def tiny_ltx(folder: Path, *, dtype: torch.dtype = torch.float32) -> LTXPipeline:
    """An LTXPipeline of random weights.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=_autoencoder(),
        text_encoder=t5_text_model().eval(),
        tokenizer=t5_tokenizer(folder),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=3,
            caption_channels=32,
        ).eval(),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _autoencoder() -> AutoencoderKLLTXVideo:
    """4x by its patches and 8x by three of its levels, as the published one."""
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_ltx(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=(
        {"height": 128, "width": 128, "num_frames": 9},
        {"height": 64, "width": 256, "num_frames": 9},
        {"height": 96, "width": 64, "num_frames": 17},
    ),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 3.0}),
    },
    feature_module="norm_out",
)
