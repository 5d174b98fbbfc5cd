"""A tiny CogView3-Plus: 3 blocks of two streams, a position for each patch, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline, CogView3PlusTransformer2DModel

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_text_model, t5_tokenizer


def tiny_cogview3(folder: Path, *, dtype: torch.dtype = torch.float32) -> CogView3PlusPipeline:
    """A CogView3PlusPipeline of random weights, with the kind of scheduler that CogView3-Plus is published with.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = CogView3PlusPipeline(
        scheduler=CogVideoXDDIMScheduler(
            snr_shift_scale=4.0,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            set_alpha_to_one=True,
            clip_sample=False,
        ),
        vae=autoencoder(),
        text_encoder=t5_text_model(),
        tokenizer=t5_tokenizer(folder),
        transformer=CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=16,
            condition_dim=8,
            pos_embed_max_size=16,
            sample_size=8,
        ),
    )
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_cogview3(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 80}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 7.0}),
    },
    feature_module="norm_out",
)
