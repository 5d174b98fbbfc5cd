"""A tiny SkyReels-V2: 3 blocks, an autoencoder of 8x in space and 4x in time, 16 latent channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)

from tests.support.tiny.encoders_videos import fill_zeros, umt5_text_model
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_tokenizer


def tiny_skyreels_v2(folder: Path, *, dtype: torch.dtype = torch.float32) -> SkyReelsV2Pipeline:
    """A SkyReelsV2Pipeline of random weights, whose frames all have one timestep.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = SkyReelsV2Pipeline(
        tokenizer=t5_tokenizer(folder),
        text_encoder=umt5_text_model(),
        transformer=fill_zeros(_transformer()),
        vae=AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        scheduler=UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=8.0, num_train_timesteps=1000
        ),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer() -> SkyReelsV2Transformer3DModel:
    return SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        text_dim=32,
        freq_dim=16,
        ffn_dim=48,
        num_layers=3,
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_skyreels_v2(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=(
        {"height": 64, "width": 64, "num_frames": 5},
        {"height": 32, "width": 128, "num_frames": 5},
        {"height": 48, "width": 32, "num_frames": 9},
    ),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "guidance_scale": 6.0}, calls=2),
    },
    feature_module="norm_out",
)
