"""A tiny FLUX.2 and a tiny FLUX.2-klein: 2 double and 3 single blocks, text of 3 of the encoder's layers, 8x."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from transformers import Qwen3ForCausalLM

from tests.support.tiny.encoders_served import lively, mistral3, qwen3_config, ready
from tests.support.tiny.encoders_single import autoencoder_flux2
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import mistral_tokenizer, qwen_tokenizer


def tiny_flux2(folder: Path, *, dtype: torch.dtype = torch.float32) -> Flux2Pipeline:
    """A Flux2Pipeline of random weights. Its tokenizer is no PixtralProcessor, which would need torchvision.

    Args:
        folder: not used, the tokenizer needs no file.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    tokenizer = mistral_tokenizer(SYSTEM_MESSAGE)
    text_encoder = mistral3(tokenizer)
    return ready(
        Flux2Pipeline(**_components(guidance_embeds=True), text_encoder=text_encoder, tokenizer=tokenizer), dtype
    )


def tiny_flux2_klein(
    folder: Path, *, dtype: torch.dtype = torch.float32, is_distilled: bool = True
) -> Flux2KleinPipeline:
    """A Flux2KleinPipeline of random weights.

    Args:
        folder: not used, the tokenizer needs no file.
        dtype: of all weights.
        is_distilled: True for the model of few steps, which takes no guidance; False for the base model.
    """
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    text_encoder = Qwen3ForCausalLM(qwen3_config(tokenizer, layers=27))  # klein takes the layers 9, 18 and 27
    pipe = Flux2KleinPipeline(
        **_components(guidance_embeds=False),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        is_distilled=is_distilled,
    )
    return ready(pipe, dtype)


def _components(*, guidance_embeds: bool) -> dict[str, Any]:
    """What both pipelines have, with the schedule that FLUX.2 is published with."""
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    lively(transformer, 2.0)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": autoencoder_flux2(),
        "transformer": transformer,
    }


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_flux2(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 48},  # about 30 of which are the system message
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 96}),
    guidance={
        "distilled": Guidance({"guidance_scale": 4.0}),
        "distilled, weak": Guidance({"guidance_scale": 1.0}),
    },
    feature_module="norm_out",
)
KLEIN = replace(
    FAMILY,
    make=lambda folder, dtype: tiny_flux2_klein(folder, dtype=dtype, is_distilled=False),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "separate calls": Guidance({"guidance_scale": 4.0}, calls=2),
    },
)
