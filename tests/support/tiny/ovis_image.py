"""A tiny Ovis-Image: 2 double and 3 single blocks, text of a chat template, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, OvisImagePipeline, OvisImageTransformer2DModel

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder
from tests.support.tiny.encoders_streams import qwen3_text_model
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import qwen_tokenizer

INSTRUCTION = (
    "Describe the image by detailing the color, quantity, text, shape, size, texture, spatial relationships of the "
    "objects and background: "
)


def tiny_ovis_image(folder: Path, *, dtype: torch.dtype = torch.float32) -> OvisImagePipeline:
    """An OvisImagePipeline of random weights.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer("user", "assistant", "think", INSTRUCTION)
    pipe = OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=qwen3_text_model(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_ovis_image(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 32},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 80}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "guidance_scale": 5.0}, calls=2),
    },
    feature_module="norm_out",
)
