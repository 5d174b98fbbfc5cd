"""A tiny Wan: 3 blocks, an autoencoder of 8x in space and 4x in time, 16 latent channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_tokenizer


def tiny_wan(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    boundary_ratio: float | None = None,
    expand_timesteps: bool = False,
) -> WanPipeline:
    """A WanPipeline of random weights, shaped like Wan2.1.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
        boundary_ratio: where the second of two experts takes over, as in Wan2.2; None for one transformer.
        expand_timesteps: a timestep for each token, as in Wan2.2's model of 5 billion parameters.
    """
    pipe = WanPipeline(
        **_components(folder),
        transformer=_transformer(),
        transformer_2=None if boundary_ratio is None else _transformer(),
        boundary_ratio=boundary_ratio,
        expand_timesteps=expand_timesteps,
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_wan_image_to_video(
    folder: Path,
    *,
    image_encoder: bool,
    dtype: torch.dtype = torch.float32,
    boundary_ratio: float | None = None,
    pictures: int = 1,
) -> WanImageToVideoPipeline:
    """A WanImageToVideoPipeline of random weights, whose transformer takes the picture as further channels.

    Args:
        folder: an empty folder for the tokenizer's file.
        image_encoder: the transformer attends to the picture too, as Wan2.1's does and Wan2.2's does not.
        dtype: of all weights.
        boundary_ratio: where the second of two experts takes over, as in Wan2.2; None for one transformer.
        pictures: that the transformer attends to: 2 for first and last frame, as Wan2.1's model of these.
    """
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    image_dim = vision.hidden_size if image_encoder else None
    pipe = WanImageToVideoPipeline(
        **_components(folder),
        transformer=_transformer(36, image_dim, pos_embed_seq_len=2 * 5 if pictures == 2 else None),
        transformer_2=None if boundary_ratio is None else _transformer(in_channels=36, image_dim=image_dim),
        image_encoder=CLIPVisionModel(vision).eval() if image_encoder else None,
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        boundary_ratio=boundary_ratio,
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _components(folder: Path) -> dict[str, Any]:
    """What every pipeline has beside its transformers; the scheduler is the one that Wan is published with."""
    torch.manual_seed(0)
    text = UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return {
        "scheduler": UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, num_train_timesteps=1000
        ),
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        "text_encoder": UMT5EncoderModel(text).eval(),
        "tokenizer": t5_tokenizer(folder),
    }


def _transformer(
    in_channels: int = 16, image_dim: int | None = None, pos_embed_seq_len: int | None = None
) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,  # latents, and for image to video 4 of a mask and 16 of the picture
        out_channels=16,
        text_dim=32,
        freq_dim=16,
        ffn_dim=48,
        num_layers=3,
        image_dim=image_dim,
        pos_embed_seq_len=pos_embed_seq_len,
        added_kv_proj_dim=None if image_dim is None else 32,
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_wan(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=(
        {"height": 32, "width": 32, "num_frames": 5},
        {"height": 16, "width": 64, "num_frames": 5},
        {"height": 48, "width": 16, "num_frames": 9},
    ),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "guidance_scale": 3.0}, calls=2),
    },
    feature_module="norm_out",
)
