"""A tiny CogVideoX: 3 blocks, rotary positions as of the 5b, an autoencoder of 8x in space and 4x in time."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from tests.support.tiny.encoders_videos import fill_zeros
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_text_model, t5_tokenizer


def tiny_cogvideox(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    rotary: bool = True,
    patch_size_t: int | None = None,
    scheduler_class: type[CogVideoXDDIMScheduler | CogVideoXDPMScheduler] = CogVideoXDPMScheduler,
) -> CogVideoXPipeline:
    """A CogVideoXPipeline of random weights.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
        rotary: True for the positions of the 5b, False for those of the 2b, which are added to the tokens.
        patch_size_t: latent frames of a token: None for CogVideoX, 2 for CogVideoX 1.5.
        scheduler_class: DPM is advised for the 5b, DDIM for the 2b.
    """
    torch.manual_seed(0)
    pipe = CogVideoXPipeline(
        tokenizer=t5_tokenizer(folder),
        text_encoder=t5_text_model().eval(),
        vae=_autoencoder(),
        transformer=fill_zeros(_transformer(rotary, patch_size_t)),
        scheduler=scheduler_class(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0,
            timestep_spacing="trailing",
        ),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer(rotary: bool, patch_size_t: int | None) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=3,
        sample_width=16,  # 1.5 makes none larger
        sample_height=8,
        sample_frames=9,
        patch_size_t=patch_size_t,
        patch_bias=patch_size_t is None,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=rotary,
    ).eval()


def _autoencoder() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_cogvideox(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=(
        {"height": 64, "width": 64, "num_frames": 5},
        {"height": 32, "width": 128, "num_frames": 5},
        {"height": 48, "width": 32, "num_frames": 9},
    ),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 6.0}),
    },
    feature_module="norm_final",
)
