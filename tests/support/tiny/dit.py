"""A tiny DiT: 3 blocks, an autoencoder of 2x, 4 latent channels, learned sigma, ImageNet's 1,000 labels."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from tests.support.tiny.family import Guidance, TinyFamily


def tiny_dit(*, sample_size: int = 8, dtype: torch.dtype = torch.float32) -> DiTPipeline:
    """A DiTPipeline of random weights; the scheduler is the one that DiT is published with.

    Args:
        sample_size: height and width of the latents, which the configuration fixes.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = DiTPipeline(
        transformer=DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=8,  # noise and sigma
            num_layers=3,
            sample_size=sample_size,
            norm_num_groups=4,
        ).eval(),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        ).eval(),
        scheduler=DDIMScheduler(clip_sample=False),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_dit(dtype=dtype),
    arguments={"class_labels": [207]},
    batch={"class_labels": [207, 3]},
    sizes=({},),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "one batch": Guidance({"guidance_scale": 4.0}),
    },
    feature_module="norm_out",
)
