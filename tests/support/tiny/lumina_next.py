"""A tiny Lumina-Next: 3 blocks with gated cross attention, an autoencoder of 8x, learned variance."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline
from transformers import GemmaConfig, GemmaModel

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder, fill_zeros, word_tokenizer
from tests.support.tiny.family import Guidance, TinyFamily


def tiny_lumina_next(folder: Path, *, dtype: torch.dtype = torch.float32) -> LuminaPipeline:
    """A LuminaPipeline of random weights, with grouped key and value heads.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    pipe = LuminaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
        vae=autoencoder(),
        text_encoder=_gemma(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=LuminaNextDiT2DModel(
            sample_size=8,
            hidden_size=32,
            num_layers=3,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            cross_attention_dim=24,
        ),
    )
    fill_zeros(pipe.transformer)
    torch.nn.init.normal_(pipe.transformer.pad_token)  # the class leaves it as it finds the memory
    return ready(pipe, dtype)


def _gemma(vocab_size: int) -> GemmaModel:
    return GemmaModel(
        GemmaConfig(
            vocab_size=vocab_size,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
        )
    )


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_lumina_next(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "clean_caption": False},
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 32}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 4.0}),
    },
    feature_module="norm_out",
)
