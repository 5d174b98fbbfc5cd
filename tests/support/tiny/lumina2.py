"""A tiny Lumina-Image 2: 2 refiner blocks each for text and picture, 3 joint blocks, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder, gemma2, word_tokenizer
from tests.support.tiny.family import Guidance, TinyFamily


def tiny_lumina2(folder: Path, *, dtype: torch.dtype = torch.float32) -> Lumina2Pipeline:
    """A Lumina2Pipeline of random weights, with grouped key and value heads.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    tokenizer = word_tokenizer("draw <Prompt Start>")
    pipe = Lumina2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=gemma2(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=48,
            num_layers=3,
            num_refiner_layers=2,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(64, 32, 32),
            cap_feat_dim=32,
        ),
    )
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_lumina2(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "system_prompt": "draw", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 32}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "guidance_scale": 4.0}, calls=2),
    },
    feature_module="norm_out",
)
