"""A tiny Krea 2: 3 blocks, text of 3 layers of the encoder that is padded in its middle, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel

from tests.support.tiny.encoders_served import lively, qwen3_vl, qwen_image_autoencoder, ready
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import qwen_tokenizer

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)


def tiny_krea2(folder: Path, *, dtype: torch.dtype = torch.float32, is_distilled: bool = False) -> Krea2Pipeline:
    """A Krea2Pipeline of random weights.

    Args:
        folder: not used, the tokenizer needs no file.
        dtype: of all weights but the transformer's norms, which diffusers keeps in float32.
        is_distilled: the shift of timesteps does not depend on the size, as in the model of few steps.
    """
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(TEMPLATE)
    pipe = Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
        ),
        vae=qwen_image_autoencoder(),
        text_encoder=qwen3_vl(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            timestep_embed_dim=16,
            text_hidden_dim=24,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(1, 2, 4),
        is_distilled=is_distilled,
    )
    lively(pipe.transformer, 1.5)
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_krea2(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 96}),
    guidance={
        "none": Guidance({"guidance_scale": 0.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "guidance_scale": 3.0}, calls=2),
    },
    feature_module="final_layer",
)
