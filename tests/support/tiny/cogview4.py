"""A tiny CogView4: 3 blocks of two streams, text padded to a multiple of 16 tokens, an autoencoder of 8x."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import GlmConfig, GlmModel

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder, word_tokenizer
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import WORDS


def tiny_cogview4(folder: Path, *, dtype: torch.dtype = torch.float32) -> CogView4Pipeline:
    """A CogView4Pipeline of random weights, with the kind of scheduler that CogView4-6B is published with.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    tokenizer = word_tokenizer(padding_side="left")
    pipe = CogView4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
        vae=autoencoder(use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_glm(len(tokenizer), tokenizer.pad_token_id),
        tokenizer=tokenizer,
        transformer=CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=24,
            time_embed_dim=16,
            condition_dim=8,
            sample_size=8,
        ),
    )
    return ready(pipe, dtype)


def _glm(vocab_size: int, pad_token_id: int) -> GlmModel:
    """A GLM-4 of 24 features and 3 layers, random weights."""
    return GlmModel(
        GlmConfig(
            vocab_size=vocab_size,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=512,
            pad_token_id=pad_token_id,
            eos_token_id=1,
            initializer_range=0.3,  # for texts to matter
        )
    )


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_cogview4(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 32},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 80}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        # of more than 16 words, so that the two calls get texts of different lengths
        "separate calls": Guidance({"negative_prompt": WORDS, "guidance_scale": 4.0}, calls=2),
    },
    feature_module="norm_out",
)
