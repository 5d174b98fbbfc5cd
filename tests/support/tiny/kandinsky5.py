"""A tiny Kandinsky 5: 2 text and 3 visual blocks, an autoencoder of 8x, for pictures or for videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5T2IPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder, fill_zeros, word_tokenizer
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.hunyuan_video import autoencoder as video_autoencoder
from tests.support.tiny.text import clip_text_model, clip_tokenizer

_SIZES = ({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 32})


def tiny_kandinsky5(folder: Path, *, dtype: torch.dtype = torch.float32, video: bool = False) -> Any:
    """A Kandinsky5T2IPipeline of random weights, or a Kandinsky5T2VPipeline.

    The pipeline for pictures knows seven sizes of about a megapixel and changes others to these. This one knows the
    sizes of the tests instead, until it is saved.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights but the few that the transformer's class always keeps in float32.
        video: the pipeline for videos, whose transformer takes a picture and its mask as further channels.
    """
    torch.manual_seed(0)
    pipeline_class = Kandinsky5T2VPipeline if video else Kandinsky5T2IPipeline
    pipe = pipeline_class(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=video_autoencoder() if video else autoencoder(use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_qwen(),
        tokenizer=word_tokenizer(),
        text_encoder_2=clip_text_model(),
        tokenizer_2=clip_tokenizer(),
        transformer=Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=24,
            in_text_dim2=32,
            time_dim=24,
            out_visual_dim=4,
            model_dim=32,
            ff_dim=48,
            num_text_blocks=2,
            num_visual_blocks=3,
            axes_dims=(4, 6, 6),
            visual_cond=video,
        ),
    )
    # The pipeline cuts off as many tokens as the template has where each word is one token.
    pipe.register_modules(tokenizer=word_tokenizer(pipe.prompt_template, bos=False))
    if not video:
        pipe.resolutions = [(size["width"], size["height"]) for size in _SIZES]
    fill_zeros(pipe.transformer)
    ready(pipe, dtype)
    for name, module in pipe.transformer.named_modules():
        if name.rpartition(".")[2] in pipe.transformer._keep_in_fp32_modules:
            module.float()
    return pipe


def _qwen() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL of random weights; it sees pictures too, but gets none."""
    common = {"hidden_size": 24, "intermediate_size": 32}
    text = {
        "vocab_size": 600,
        "bos_token_id": None,
        "eos_token_id": None,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
    }
    vision = {"depth": 2, "num_heads": 2, "out_hidden_size": 24}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config={**common, **text}, vision_config={**common, **vision})
    )


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_kandinsky5(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=_SIZES,
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "guidance_scale": 3.5}, calls=2),
    },
    feature_module="out_layer",
)
