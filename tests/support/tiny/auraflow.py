"""A tiny AuraFlow: 2 double and 3 single blocks, 8 register tokens, learned positions, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder
from tests.support.tiny.encoders_videos import umt5_text_model
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_tokenizer


def tiny_auraflow(folder: Path, *, dtype: torch.dtype = torch.float32) -> AuraFlowPipeline:
    """An AuraFlowPipeline of random weights.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = AuraFlowPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        vae=autoencoder(),
        text_encoder=umt5_text_model(),
        tokenizer=t5_tokenizer(folder),
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=2,
            num_single_dit_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pos_embed_max_size=64,  # 8 x 8, so that a picture has at most 8 patches in each direction
        ),
    )
    for layer in (pipe.transformer.time_step_proj.linear_2, pipe.transformer.context_embedder):
        torch.nn.init.normal_(layer.weight)  # large, for blocks and text to matter
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_auraflow(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 80}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 3.5}),
    },
    feature_module="norm_out",
)
