"""A tiny ERNIE-Image: 3 blocks over picture and text that share their modulation, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import Mistral3Config, Mistral3Model

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder_flux2, fill_zeros, word_tokenizer
from tests.support.tiny.family import Guidance, TinyFamily


def tiny_ernie_image(folder: Path, *, dtype: torch.dtype = torch.float32) -> ErnieImagePipeline:
    """An ErnieImagePipeline of random weights, without the model that rewrites prompts.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    pipe = ErnieImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder_flux2(),
        text_encoder=_mistral3(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=3,
            ffn_hidden_size=48,
            in_channels=16,
            out_channels=16,
            text_in_dim=24,
            rope_axes_dim=(8, 4, 4),
        ),
    )
    fill_zeros(pipe.transformer)
    return ready(pipe, dtype)


def _mistral3(vocab_size: int) -> Mistral3Model:
    """Mistral 3 of random weights; it sees pictures too, but gets none."""
    common = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 24, "intermediate_size": 32}
    text = {"model_type": "ministral3", "vocab_size": vocab_size, "num_key_value_heads": 1, "head_dim": 12}
    vision = {"model_type": "pixtral", "image_size": 16, "patch_size": 8, "head_dim": 12}
    return Mistral3Model(Mistral3Config(text_config={**common, **text}, vision_config={**common, **vision}))


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_ernie_image(folder, dtype=dtype),
    arguments={"prompt": "a red apple"},
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 32}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 4.0}),
    },
    feature_module="final_norm",
)
