"""A tiny LongCat-Image: 2 double and 3 single blocks, text filled up to 512 tokens, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImagePipeline, LongCatImageTransformer2DModel

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder
from tests.support.tiny.encoders_streams import qwen25_vl
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import qwen_tokenizer

PREFIX = (
    "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image content, "
    "suitable for input to a text-to-image model.<|im_end|>\n<|im_start|>user\n"
)
# of messages whose content is a list
_REWRITING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'][0]['text'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_longcat_image(folder: Path, *, dtype: torch.dtype = torch.float32) -> LongCatImagePipeline:
    """A LongCatImagePipeline of random weights. A tokenizer takes the place of the processor that rewrites prompts: the
    published one is only ever given text, and needs torchvision.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(PREFIX, "assistant")
    pipe = LongCatImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, latent_channels=16),
        text_encoder=qwen25_vl(len(tokenizer)),
        tokenizer=tokenizer,
        text_processor=qwen_tokenizer(PREFIX, chat_template=_REWRITING),
        transformer=LongCatImageTransformer2DModel(
            in_channels=64,  # the pipeline's latents always have 16 channels
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=24,
            axes_dims_rope=[4, 4, 8],
        ),
    )
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_longcat_image(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "enable_prompt_rewrite": False},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 80}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "guidance_scale": 4.5}, calls=2),
    },
    feature_module="norm_out",
)
