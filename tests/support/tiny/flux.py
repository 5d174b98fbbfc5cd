"""A tiny FLUX: 2 double and 3 single blocks, 8x autoencoder, 4 latent channels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import clip_text_model, clip_tokenizer, t5_text_model, t5_tokenizer


def tiny_flux(
    folder: Path,
    *,
    guidance_embeds: bool = True,
    dtype: torch.dtype = torch.float32,
    dynamic_shift: bool = True,
    pipeline_class: type[Any] = FluxPipeline,
    in_channels: int = 16,
    levels: int = 2,
) -> Any:
    """A FLUX pipeline of random weights: 2 double and 3 single blocks, 4 latent channels.

    Args:
        folder: an empty folder for the tokenizers' files.
        guidance_embeds: True for the shape of FLUX.1-dev, False for that of FLUX.1-schnell.
        dtype: of all weights.
        dynamic_shift: the scheduler's shift depends on the size, as FLUX.1-dev's does.
        pipeline_class: of the pipeline.
        in_channels: of the transformer's tokens, 16 of latents and what a pipeline appends to them.
        levels: of the autoencoder, each of which but the first halves height and width.
    """
    torch.manual_seed(0)
    pipe = pipeline_class(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shift),
        vae=_autoencoder(levels),
        text_encoder=clip_text_model(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text_model(),
        tokenizer_2=t5_tokenizer(folder),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=in_channels,
            out_channels=16,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    for name in ("vae", "text_encoder", "text_encoder_2", "transformer"):
        getattr(pipe, name).to(dtype).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _autoencoder(levels: int) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.4,
    )


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_flux(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "guidance_scale": 2.5, "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 32, "width": 32}, {"height": 16, "width": 64}, {"height": 64, "width": 24}),
    guidance={
        "distilled": Guidance(),
        "separate calls": Guidance({"negative_prompt": "ugly", "true_cfg_scale": 3.0}, calls=2),
    },
    feature_module="norm_out",
)


def shift_of_size(side: int) -> float:
    """What the noise over signal of a square picture's steps is multiplied by: each token is 4 pixels wide."""
    return math.exp(calculate_shift((side // 4) ** 2))
