"""A tiny HunyuanVideo: 2 dual and 3 single blocks, a token refiner, an autoencoder of 8x in space and 4x in time."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import LlamaConfig, LlamaModel

from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import clip_text_model, clip_tokenizer, llama_tokenizer


def tiny_hunyuan_video(*, dtype: torch.dtype = torch.float32, guidance_embeds: bool = True) -> HunyuanVideoPipeline:
    """A HunyuanVideoPipeline of random weights.

    Args:
        dtype: of all weights.
        guidance_embeds: True for the published shape, whose guidance is embedded.
    """
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    pipe = HunyuanVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=autoencoder(),
        text_encoder=LlamaModel(llama).eval(),
        tokenizer=llama_tokenizer(),
        text_encoder_2=clip_text_model().eval(),
        tokenizer_2=clip_tokenizer(),
        transformer=transformer(in_channels=4, guidance_embeds=guidance_embeds),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def autoencoder() -> AutoencoderKLHunyuanVideo:
    """Of random weights, 8x in space and 4x in time, with 4 latent channels."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.5,
    ).eval()


def transformer(**options: Any) -> HunyuanVideoTransformer3DModel:
    """Of random weights, with 2 dual and 3 single blocks; more options of diffusers' class."""
    return HunyuanVideoTransformer3DModel(
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=3,
        num_refiner_layers=2,
        text_embed_dim=24,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 4, 8),
        **options,
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_hunyuan_video(dtype=dtype),
    arguments={
        "prompt": "a red apple",
        "prompt_template": {"template": "the {}", "crop_start": 2},
        "max_sequence_length": 16,
    },
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=(
        {"height": 32, "width": 32, "num_frames": 5},
        {"height": 16, "width": 64, "num_frames": 5},
        {"height": 48, "width": 16, "num_frames": 9},
    ),
    guidance={
        "embedded": Guidance({"guidance_scale": 6.0}),
        "separate calls": Guidance({"guidance_scale": 1.0, "negative_prompt": "ugly", "true_cfg_scale": 3.0}, calls=2),
    },
    feature_module="norm_out",
)
