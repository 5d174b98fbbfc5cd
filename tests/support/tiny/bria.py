"""A tiny Bria 3.2: 2 double and 3 single blocks, text filled up with zeros, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import BriaPipeline, BriaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_text_model, t5_tokenizer


def tiny_bria(folder: Path, *, dtype: torch.dtype = torch.float32) -> BriaPipeline:
    """A BriaPipeline of random weights.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = BriaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.0),
        text_encoder=t5_text_model(),
        tokenizer=t5_tokenizer(folder),
        transformer=BriaTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[0, 8, 8],  # none of the first, as published
        ),
    )
    return ready(pipe, dtype)


# The pipeline counts 16 pixels for a token, so its `vae_scale_factor` is twice the autoencoder's.
FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_bria(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 96, "width": 32}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 5.0}),
    },
    feature_module="norm_out",
)
