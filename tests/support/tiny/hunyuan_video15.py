"""A tiny HunyuanVideo-1.5: 3 dual blocks, a token refiner, an autoencoder of 16x in space and 4x in time.

Guidance is the guider's, a component, and no argument of the call.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from tests.support.tiny.encoders_videos import chat_tokenizer, fill_zeros, qwen_text_model
from tests.support.tiny.family import Guidance, TinyFamily


def tiny_hunyuan_video15(
    folder: Path, *, dtype: torch.dtype = torch.float32, guidance_scale: float = 6.0
) -> HunyuanVideo15Pipeline:
    """A HunyuanVideo15Pipeline of random weights.

    Args:
        folder: not used.
        dtype: of all weights.
        guidance_scale: of the pipeline's guider; at 1 the transformer is called once at each step.
    """
    torch.manual_seed(0)
    pipe = HunyuanVideo15Pipeline(
        text_encoder=qwen_text_model(),
        tokenizer=chat_tokenizer(system_tokens=108),
        transformer=fill_zeros(_transformer()),
        vae=_autoencoder(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=_byt5_text_model(),
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=guidance_scale),
    ).to(dtype)
    # 1000, 256 and 729 tokens as loaded; no settings of the configuration, so a pipeline loaded from files has those.
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 24, 16, 8
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer() -> HunyuanVideo15Transformer3DModel:
    return HunyuanVideo15Transformer3DModel(
        in_channels=2 * 4 + 1,  # latents, a picture's latents and a mask
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        text_embed_dim=24,
        text_embed_2_dim=32,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
        task_type="t2v",
    ).eval()


def _byt5_text_model() -> T5EncoderModel:
    config = T5Config(
        vocab_size=384, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def _autoencoder() -> AutoencoderKLHunyuanVideo15:
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
        downsample_match_channel=False,
        upsample_match_channel=False,
    ).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_hunyuan_video15(folder, dtype=dtype),
    arguments={"prompt": 'a red apple "tree"'},  # quoted words go to the second text encoder
    batch={"prompt": ["a red apple", 'a blue house "sun"']},
    sizes=(
        {"height": 64, "width": 64, "num_frames": 5},
        {"height": 32, "width": 128, "num_frames": 5},
        {"height": 48, "width": 16, "num_frames": 9},
    ),
    guidance={
        "separate calls": Guidance({"negative_prompt": "ugly"}, calls=2),
        "separate calls, no negative prompt": Guidance(calls=2),
    },
    feature_module="norm_out",
)
UNGUIDED = replace(
    FAMILY,
    make=lambda folder, dtype: tiny_hunyuan_video15(folder, dtype=dtype, guidance_scale=1.0),
    guidance={"none": Guidance(), "none, negative prompt": Guidance({"negative_prompt": "ugly"})},
)
