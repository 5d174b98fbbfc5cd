"""Tiny HunyuanVideo pipelines of image to video: as tiny_hunyuan_video, with a Llava that sees the picture."""

from __future__ import annotations

import re

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoImageToVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tests.support.tiny.hunyuan_video import autoencoder, transformer
from tests.support.tiny.text import WORDS, clip_text_model, clip_tokenizer

_SPECIAL = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<image>", "<unk>")
_PATCHES = 24  # in a row: 24 x 24 = 576 tokens of a picture, as the pipeline's own template counts them


def tiny_hunyuan_image_to_video(
    condition: str, *, dtype: torch.dtype = torch.float32
) -> HunyuanVideoImageToVideoPipeline:
    """A HunyuanVideoImageToVideoPipeline of random weights, to be called with the pipeline's own prompt template.

    Args:
        condition: "latent_concat" or "token_replace", how the transformer takes the picture.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    pipe = HunyuanVideoImageToVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=autoencoder(),
        text_encoder=_llava(tokenizer).eval(),
        tokenizer=tokenizer,
        text_encoder_2=clip_text_model().eval(),
        tokenizer_2=clip_tokenizer(),
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 2 * _PATCHES}, crop_size={"height": 2 * _PATCHES, "width": 2 * _PATCHES}
        ),
        transformer=transformer(
            in_channels=2 * 4 + 1 if condition == "latent_concat" else 4,
            guidance_embeds=True,
            image_condition_type=condition,
        ),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, those of the template among them."""
    words = re.findall(r"\w+|[^\w\s]+", f"{WORDS} {DEFAULT_PROMPT_TEMPLATE['template']}")
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys((*_SPECIAL, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
        unk_token="<unk>",
        additional_special_tokens=["<|start_header_id|>", "<|end_header_id|>", "<image>"],
        model_max_length=2048,
    )


def _llava(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=2 * _PATCHES,
        patch_size=2,
        projection_dim=16,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaForConditionalGeneration(config)
