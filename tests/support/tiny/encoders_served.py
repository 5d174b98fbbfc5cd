"""Tiny text encoders and autoencoders of the pipelines that are saved, loaded and served by prompt."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, ModelMixin
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLModel,
)

from tests.support.tiny.encoders_single import fill_zeros


def clip_with_projection(features: int) -> CLIPTextModelWithProjection:
    """A CLIP text encoder of so many features, for `clip_tokenizer`, random weights."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=600,
            hidden_size=features,
            intermediate_size=32,
            projection_dim=features,
            num_hidden_layers=3,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def qwen3_vl(vocab_size: int) -> Qwen3VLModel:
    """A Qwen3-VL of 24 features and 4 layers, random weights."""
    return Qwen3VLModel(
        Qwen3VLConfig(
            text_config={
                "vocab_size": vocab_size,
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [4, 2, 2],
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 24,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
        )
    )


def qwen25_vl(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of 24 features and 3 layers, random weights."""
    special = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    image, video, start, end = tokenizer.convert_tokens_to_ids(list(special))
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
                "bos_token_id": tokenizer.pad_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            },
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 24,
                "fullatt_block_indexes": [1],
            },
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
    )


def qwen3_config(tokenizer: Qwen2Tokenizer, layers: int) -> Qwen3Config:
    """Of a Qwen3 of 16 features."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def mistral3(tokenizer: PreTrainedTokenizerFast) -> Mistral3ForConditionalGeneration:
    """A Mistral 3 of 16 features and 30 layers, of which FLUX.2 takes the last, random weights."""
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config={
                "model_type": "mistral",
                "vocab_size": len(tokenizer),
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 30,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 8,
                "max_position_embeddings": 2048,
                "sliding_window": None,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "model_type": "pixtral",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 8,
                "image_size": 28,
            },
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        )
    )


def qwen_image_autoencoder() -> AutoencoderKLQwenImage:
    """Of random weights, 8x, with 4 latent channels."""
    autoencoder = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.0, 2.0],
    )
    autoencoder.decoder.conv_in.weight.data.mul_(10)  # for latents to show in the pictures
    return autoencoder


def lively(transformer: torch.nn.Module, factor: float) -> None:
    """Makes the weights of a transformer just built larger: its output then depends on the text more than slightly."""
    fill_zeros(transformer)
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(factor)


def ready(pipe: Any, dtype: torch.dtype) -> Any:
    """The pipeline for inference, quiet, its weights in the dtype.

    As `from_pretrained` gives it: what is computed and never saved, and what diffusers keeps in float32, is not cast.
    """
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
            kept = set(component._keep_in_fp32_modules or ()) if isinstance(component, ModelMixin) else set()
            saved = component.state_dict()
            for name, tensor in chain(component.named_parameters(), component.named_buffers()):
                if name in saved and tensor.is_floating_point() and not kept.intersection(name.split(".")):
                    tensor.data = tensor.data.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe
