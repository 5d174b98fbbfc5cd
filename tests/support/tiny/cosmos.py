"""A tiny Cosmos-Predict2 of text to image: 3 blocks with cross attention, 8x in space, 16 latent channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)

from tests.support.tiny.encoders_videos import fill_zeros
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_text_model, t5_tokenizer


class AnythingGoes:
    """In place of the safety checker, which the pipeline insists on and which is a package of its own."""

    def to(self, device: Any) -> None:
        pass

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def tiny_cosmos(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    learned_positions: bool = True,
    concat_padding_mask: bool = False,
) -> Cosmos2TextToImagePipeline:
    """A Cosmos2TextToImagePipeline of random weights.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
        learned_positions: added to the tokens in each block, as in the first Cosmos; Predict2 has rotary ones alone.
        concat_padding_mask: the padding mask is one more channel, as in the published ones; needs torchvision.
    """
    torch.manual_seed(0)
    pipe = Cosmos2TextToImagePipeline(
        text_encoder=t5_text_model().eval(),
        tokenizer=t5_tokenizer(folder),
        transformer=fill_zeros(_transformer(learned_positions, concat_padding_mask)),
        vae=AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=AnythingGoes(),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer(learned_positions: bool, concat_padding_mask: bool) -> CosmosTransformer3DModel:
    return CosmosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        text_embed_dim=32,
        adaln_lora_dim=8,
        max_size=(8, 32, 32),
        rope_scale=(1.0, 4.0, 4.0),
        concat_padding_mask=concat_padding_mask,
        extra_pos_embed_type="learnable" if learned_positions else None,
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_cosmos(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 96}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "guidance_scale": 7.0}, calls=2),
    },
    feature_module="norm_out",
)
