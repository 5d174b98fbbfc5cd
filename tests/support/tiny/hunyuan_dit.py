"""A tiny Hunyuan-DiT: 6 blocks, the last two of which take what the first two gave, an autoencoder of 8x."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
from transformers import BertConfig, BertModel, BertTokenizer

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder, fill_zeros
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import WORDS, t5_text_model, t5_tokenizer


def tiny_hunyuan_dit(
    folder: Path, *, dtype: torch.dtype = torch.float32, size_and_style: bool = False
) -> HunyuanDiTPipeline:
    """A HunyuanDiTPipeline of random weights, with the scheduler that Hunyuan-DiT is published with.

    Args:
        folder: an empty folder for the T5 tokenizer's file.
        dtype: of all weights.
        size_and_style: the model is told the picture's size and style, as until version 1.1.
    """
    torch.manual_seed(0)
    tokenizer = _bert_tokenizer()
    pipe = HunyuanDiTPipeline(
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.018,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            steps_offset=1,
        ),
        vae=autoencoder(),
        text_encoder=_bert(len(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=t5_text_model(),
        tokenizer_2=t5_tokenizer(folder),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        transformer=HunyuanDiT2DModel(
            sample_size=8,
            in_channels=4,
            patch_size=2,
            num_layers=6,
            num_attention_heads=2,
            attention_head_dim=16,
            hidden_size=32,
            cross_attention_dim=24,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
            use_style_cond_and_image_meta_size=size_and_style,
        ),
    )
    fill_zeros(pipe.transformer)
    return ready(pipe, dtype)


def _bert_tokenizer() -> BertTokenizer:
    """A BERT tokenizer of `WORDS` and, for other words, of letters."""
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *letters])
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=77)


def _bert(vocab_size: int) -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
        )
    )


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_hunyuan_dit(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "use_resolution_binning": False},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 32}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 5.0}),
    },
    feature_module="norm_out",
)
