"""Tiny text encoders, a tokenizer of whole words and autoencoders that several tiny pipelines share."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast, Qwen3VLConfig

from tests.support.tiny.text import WORDS

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>")

QWEN_CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{{ message.content[0].text }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def word_tokenizer(
    *texts: str, bos: bool = True, chat_template: str | None = None, padding_side: str = "right"
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with one token for each word of `WORDS` and of the texts.

    Args:
        texts: prompt templates whose words are to be single tokens, as a large vocabulary has them.
        bos: whether each text begins with a token of its own, as Gemma's do.
        chat_template: of Jinja; None for `apply_chat_template` to fail.
        padding_side: where shorter texts of a batch are filled up.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS, *texts], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        padding_side=padding_side,
        chat_template=chat_template,
    )


def gemma2(vocab_size: int) -> Gemma2Model:
    """Gemma 2 of 32 features and 2 layers, random weights."""
    return Gemma2Model(
        Gemma2Config(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=16,
        )
    )


def qwen3_vl_config(*, vocab_size: int, layers: int, features: int) -> Qwen3VLConfig:
    """Of a Qwen3-VL, which sees pictures too; 2 heads."""
    text = {
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": features,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
    }
    vision = {
        "depth": 2,
        "num_heads": 2,
        "hidden_size": 24,
        "intermediate_size": 32,
        "out_hidden_size": features,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision)


def autoencoder(*, levels: int = 4, latent_channels: int = 4, **options: Any) -> AutoencoderKL:
    """An AutoencoderKL of random weights, each of whose levels but the first halves height and width."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        latent_channels=latent_channels,
        scaling_factor=0.4,
        **options,
    )


def autoencoder_flux2() -> AutoencoderKLFlux2:
    """FLUX.2's autoencoder of random weights: 8x, and 4 latent channels, which pipelines make 16 of half the size."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    torch.nn.init.normal_(vae.bn.running_mean, std=0.1)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 1.5)
    return vae


def fill_zeros(module: torch.nn.Module) -> None:
    """Gives parameters that are all zero, as gates are before training, small random values."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
