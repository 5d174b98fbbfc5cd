"""A tiny NucleusMoE-Image: 6 blocks, the fourth and fifth of 4 experts that choose their tokens, 4 latent channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
)
from diffusers.pipelines.nucleusmoe_image.pipeline_nucleusmoe_image import DEFAULT_SYSTEM_PROMPT
from transformers import Qwen3VLForConditionalGeneration

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import QWEN_CHAT, qwen3_vl_config, word_tokenizer
from tests.support.tiny.family import Guidance, TinyFamily


def tiny_nucleusmoe_image(
    folder: Path, *, dtype: torch.dtype = torch.float32, use_sigmoid: bool = False
) -> NucleusMoEImagePipeline:
    """A NucleusMoEImagePipeline of random weights, with grouped key and value heads.

    Its processor is a tokenizer alone: a real one needs torchvision for pictures, and the pipeline has none.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
        use_sigmoid: for the scores by which experts choose their tokens, in place of a softmax.
    """
    torch.manual_seed(0)
    tokenizer = word_tokenizer(DEFAULT_SYSTEM_PROMPT, "system\nuser\nassistant\n", bos=False, chat_template=QWEN_CHAT)
    # The pipeline takes the text from the eighth layer before the last.
    config = qwen3_vl_config(vocab_size=len(tokenizer), layers=9, features=24)
    pipe = NucleusMoEImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, 0.0, -0.1, 0.2],
            latents_std=[1.0, 2.0, 1.5, 0.5],
        ),
        text_encoder=Qwen3VLForConditionalGeneration(config),
        processor=tokenizer,
        transformer=NucleusMoEImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=6,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=(4, 2, 2),
            mlp_ratio=6.0,  # rounded down to a multiple of 128 features
            num_experts=4,
            moe_intermediate_dim=24,
            capacity_factors=2.0,
            use_sigmoid=use_sigmoid,
        ),
    )
    for name, parameter in pipe.transformer.named_parameters():
        if ".experts." in name:  # the class leaves them as it finds the memory
            torch.nn.init.normal_(parameter, std=0.2)
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_nucleusmoe_image(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 96},  # the template alone has 65 tokens
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 32}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "guidance_scale": 4.0}, calls=2),
    },
    feature_module="norm_out",
)
