"""A tiny Mochi: 3 blocks, the last of which drops the text, learned rotary frequencies, 12 latent channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

from tests.support.tiny.encoders_videos import fill_zeros
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_text_model, t5_tokenizer


def tiny_mochi(
    folder: Path, *, dtype: torch.dtype = torch.float32, force_zeros_for_empty_prompt: bool = True
) -> MochiPipeline:
    """A MochiPipeline of random weights.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
        force_zeros_for_empty_prompt: all of an empty prompt is masked, as the original does.
    """
    torch.manual_seed(0)
    pipe = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=_autoencoder(),
        text_encoder=t5_text_model().eval(),
        tokenizer=t5_tokenizer(folder),
        transformer=fill_zeros(_transformer()),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer() -> MochiTransformer3DModel:
    return MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        pooled_projection_dim=24,
        text_embed_dim=32,
        time_embed_dim=16,
        max_sequence_length=16,
    ).eval()


def _autoencoder() -> AutoencoderKLMochi:
    """The pipeline takes it to be 8x in space and 6x in time with 12 channels, whatever it is."""
    return AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_mochi(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=(
        {"height": 64, "width": 64, "num_frames": 7},
        {"height": 32, "width": 128, "num_frames": 7},
        {"height": 48, "width": 32, "num_frames": 13},
    ),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 4.5}),
        "batched, no negative prompt": Guidance({"guidance_scale": 4.5}),
    },
    feature_module="norm_out",
)
