"""Tiny text encoders and tokenizers of the video pipelines, beside those in `text`."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.support.tiny.text import llama_tokenizer

Model = TypeVar("Model", bound=torch.nn.Module)


def chat_tokenizer(system_tokens: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template.

    Args:
        system_tokens: that the template has in place of the system message, as many as a pipeline cuts off.
    """
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        f"{{{{ '<|begin_of_text|>' * {system_tokens} }}}}"
        "{% elif message['content'] is string %}{{ message['content'] + '<|eot_id|>' }}"
        "{% else %}{% for part in message['content'] %}{{ part['text'] + '<|eot_id|>' }}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    return tokenizer


def qwen_text_model() -> Qwen2_5_VLTextModel:
    """The text part of a Qwen2.5-VL of 24 features, random weights."""
    config = Qwen2_5_VLTextConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return Qwen2_5_VLTextModel(config).eval()


def qwen2_vl() -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL of 24 features, random weights, of which only the text part is of use."""
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 300,
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 1, "hidden_size": 24},
        image_token_id=296,
        video_token_id=297,
        vision_start_token_id=298,
        vision_end_token_id=299,
    )
    return Qwen2VLForConditionalGeneration(config).eval()


def gemma2_text_model() -> Gemma2Model:
    """A Gemma 2 of 24 features, random weights."""
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return Gemma2Model(config).eval()


def umt5_text_model() -> UMT5EncoderModel:
    """A UMT5 encoder of 32 features, random weights."""
    config = UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return UMT5EncoderModel(config).eval()


def fill_zeros(model: Model) -> Model:
    """The model, whose parameters that are all zero are small random numbers now, so that each has an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model
