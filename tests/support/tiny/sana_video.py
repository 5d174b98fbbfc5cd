"""A tiny Sana-Video: 3 blocks of linear and of cross attention, an autoencoder of 8x in space and 4x in time."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)

from tests.support.tiny.encoders_videos import fill_zeros, gemma2_text_model
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import llama_tokenizer


def tiny_sana_video(folder: Path, *, dtype: torch.dtype = torch.float32) -> SanaVideoPipeline:
    """A SanaVideoPipeline of random weights.

    Args:
        folder: not used.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = SanaVideoPipeline(
        tokenizer=llama_tokenizer(),
        text_encoder=gemma2_text_model(),
        vae=AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        transformer=fill_zeros(_transformer()),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=8.0, num_train_timesteps=1000
        ),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer() -> SanaVideoTransformer3DModel:
    return SanaVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=24,
        rope_max_seq_len=32,
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_sana_video(folder, dtype=dtype),
    arguments={
        "prompt": "a red apple",
        "max_sequence_length": 16,
        "complex_human_instruction": ["the sun of "],
        "use_resolution_binning": False,
    },
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=(
        {"height": 64, "width": 64, "frames": 5},
        {"height": 32, "width": 128, "frames": 5},
        {"height": 96, "width": 32, "frames": 9},
    ),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 6.0}),
    },
    feature_module="norm_out",
)
