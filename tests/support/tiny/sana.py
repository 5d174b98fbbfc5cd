"""A tiny Sana: 3 blocks of linear attention and convolution, an autoencoder of 32x, 4 latent channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import gemma2, word_tokenizer
from tests.support.tiny.family import Guidance, TinyFamily


def tiny_sana(
    folder: Path, *, dtype: torch.dtype = torch.float32, qk_norm: str | None = None, timestep_scale: float = 1.0
) -> SanaPipeline:
    """A SanaPipeline of random weights.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
        qk_norm: of queries and keys: None, or "rms_norm_across_heads".
        timestep_scale: what the pipeline multiplies timesteps by.
    """
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    pipe = SanaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(),
        text_encoder=gemma2(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            num_attention_heads=4,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
            sample_size=32,
            qk_norm=qk_norm,
            timestep_scale=timestep_scale,
        ),
    )
    return ready(pipe, dtype)


def _autoencoder() -> AutoencoderDC:
    """Of random weights: 6 levels, so 32x, the last two with attention."""
    blocks = ("ResBlock",) * 4 + ("EfficientViTBlock",) * 2
    scales: tuple[tuple[int, ...], ...] = ((),) * 4 + ((5,),) * 2
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_sana(folder, dtype=dtype),
    arguments={
        "prompt": "a red apple",
        "complex_human_instruction": None,
        "use_resolution_binning": False,
        "max_sequence_length": 16,
    },
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 128, "width": 128}, {"height": 64, "width": 256}, {"height": 96, "width": 64}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 4.5}),
    },
    feature_module="norm_out",
)
