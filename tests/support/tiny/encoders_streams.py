"""Tiny text encoders that several pipelines of two streams of tokens share."""

from __future__ import annotations

from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)


def qwen25_vl(vocab_size: int, **tokens: Any) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of 24 features and 4 layers, random weights.

    Args:
        vocab_size: of the tokenizer.
        tokens: numbers of special tokens, by their name in the configuration.
    """
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": 0.3,  # for texts to matter
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))


def qwen3_text_model(vocab_size: int) -> Qwen3Model:
    """A Qwen3 of 24 features and 2 layers, random weights."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=512,
        )
    )


def byt5_text_model() -> T5EncoderModel:
    """A T5 encoder of bytes with 32 features, random weights."""
    return T5EncoderModel(
        T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
    )
