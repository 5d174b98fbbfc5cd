"""A tiny Z-Image: 3 blocks, 2 refiners of noise and 2 of text, picture and text padded to 32 tokens each, 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Model

from tests.support.tiny.encoders_served import qwen3_config, ready
from tests.support.tiny.encoders_single import autoencoder, fill_zeros
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import QWEN_CHAT, qwen_tokenizer

# ZImagePipeline writes the chat into the list of prompts that it is given. A list that is given again must not get
# longer, so what is a chat already stays as it is.
CHAT = (
    "{% if messages[0]['content'].startswith('<|im_start|>') %}{{ messages[0]['content'] }}"
    f"{{% else %}}{QWEN_CHAT}{{% endif %}}"
)


def tiny_z_image(folder: Path, *, dtype: torch.dtype = torch.float32) -> ZImagePipeline:
    """A ZImagePipeline of random weights, with the schedule that Z-Image is published with.

    Args:
        folder: not used, the tokenizer needs no file.
        dtype: of all weights. Latents are float32 in any case.
    """
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(chat_template=CHAT)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=3,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    fill_zeros(transformer)
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=Qwen3Model(qwen3_config(tokenizer, layers=4)),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_z_image(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 64, "width": 144}),
    guidance={
        "none": Guidance({"guidance_scale": 0.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 3.0}),
    },
    feature_module="all_final_layer.2-1",
)
