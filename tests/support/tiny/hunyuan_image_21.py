"""A tiny HunyuanImage 2.1: 2 dual and 3 single blocks, a token refiner, text of letters, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanImage,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from transformers import ByT5Tokenizer

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_streams import byt5_text_model, qwen25_vl
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import qwen_tokenizer

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)


def tiny_hunyuan_image_21(
    folder: Path, *, dtype: torch.dtype = torch.float32, distilled: bool = False, text_tokens: int | None = 32
) -> HunyuanImagePipeline:
    """A HunyuanImagePipeline of random weights.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
        distilled: guidance is embedded and each step is told where the next one is, as in the model of few steps;
            else guiders make a second call at each step.
        text_tokens: of each of the two texts; None for the pipeline's own 1000 and 128. Loading forgets it.
    """
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(TEMPLATE)
    pipe = HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0 if distilled else 5.0),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            spatial_compression_ratio=8,
            sample_size=64,
            scaling_factor=0.75,
        ),
        text_encoder=qwen25_vl(len(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=byt5_text_model(),
        tokenizer_2=ByT5Tokenizer(),
        transformer=HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_single_layers=3,
            num_refiner_layers=2,
            guidance_embeds=distilled,
            use_meanflow=distilled,
            text_embed_dim=24,
            text_embed_2_dim=32,
            rope_axes_dim=(8, 8),
        ),
        guider=None if distilled else AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
        ocr_guider=None if distilled else AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
    )
    if text_tokens is not None:
        pipe.tokenizer_max_length = pipe.tokenizer_2_max_length = text_tokens
    return ready(pipe, dtype)


_SIZES = ({"height": 32, "width": 32}, {"height": 16, "width": 64}, {"height": 48, "width": 16})
_BATCH = {"prompt": ["a red apple", 'a blue house, "sun" on it']}
_LETTERS = {"prompt": 'a "red" apple'}

# Guidance is not the call's to ask for: the components `guider` and, for a prompt with quotation marks, `ocr_guider`
# decide. Without them, as in the distilled model, there is one call.
FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_hunyuan_image_21(folder, dtype=dtype),
    arguments={"prompt": "a red apple"},
    batch=_BATCH,
    sizes=_SIZES,
    guidance={
        "separate calls": Guidance({"negative_prompt": "ugly"}, calls=2),
        "separate calls, letters": Guidance({**_LETTERS, "negative_prompt": "ugly"}, calls=2),
    },
    feature_module="norm_out",
)
DISTILLED = TinyFamily(
    make=lambda folder, dtype: tiny_hunyuan_image_21(folder, dtype=dtype, distilled=True),
    arguments={"prompt": "a red apple", "distilled_guidance_scale": 3.25},
    batch=_BATCH,
    sizes=_SIZES,
    guidance={"distilled": Guidance(), "distilled, letters": Guidance(_LETTERS)},
    feature_module="norm_out",
)
