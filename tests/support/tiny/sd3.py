"""A tiny Stable Diffusion 3.5: 3 joint blocks, text of two CLIPs and T5, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from tests.support.tiny.encoders_served import clip_with_projection, ready
from tests.support.tiny.encoders_single import autoencoder
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import clip_tokenizer, t5_text_model, t5_tokenizer


def tiny_sd3(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    dual_attention_layers: tuple[int, ...] = (),
    qk_norm: str | None = "rms_norm",
) -> StableDiffusion3Pipeline:
    """A StableDiffusion3Pipeline of random weights.

    Args:
        folder: an empty folder for the T5 tokenizer's file.
        dtype: of all weights.
        dual_attention_layers: blocks whose picture tokens attend to themselves too, as the first ones of SD3.5-medium.
        qk_norm: None for the shape of SD3-medium.
    """
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=12 + 16,
        out_channels=4,
        pos_embed_max_size=16,
        dual_attention_layers=dual_attention_layers,
        qk_norm=qk_norm,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=clip_with_projection(12),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_with_projection(16),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text_model(),
        tokenizer_3=t5_tokenizer(folder),
    )
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_sd3(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 96}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 3.0}),
    },
    feature_module="norm_out",
)
