"""A tiny HiDream-I1: 2 double and 3 single blocks of 4 experts, 3 Llama layers, an autoencoder that keeps the size.

The pipeline makes pictures of 128 x 128 latents whatever is asked for, so patches are large to have few tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, HiDreamImagePipeline, HiDreamImageTransformer2DModel, UniPCMultistepScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import clip_tokenizer, llama_tokenizer, t5_text_model, t5_tokenizer


def tiny_hidream(folder: Path, *, dtype: torch.dtype = torch.float32) -> HiDreamImagePipeline:
    """A HiDreamImagePipeline of random weights, with the scheduler that HiDream-I1-Full is published with.

    Args:
        folder: an empty folder for the T5 tokenizer's file.
        dtype: of all weights.
    """
    torch.manual_seed(0)
    pipe = HiDreamImagePipeline(
        scheduler=UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, num_train_timesteps=1000
        ),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(8,),
            norm_num_groups=4,
            latent_channels=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.1,
            scaling_factor=0.4,
        ).eval(),
        text_encoder=_clip_text_model(16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_clip_text_model(24),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text_model().eval(),
        tokenizer_3=t5_tokenizer(folder),
        text_encoder_4=_llama(),
        tokenizer_4=llama_tokenizer(),
        transformer=HiDreamImageTransformer2DModel(
            patch_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[32, 24],  # of T5, of Llama
            text_emb_dim=16 + 24,
            axes_dims_rope=(8, 4, 4),
            llama_layers=[0, 1, 2, 2, 2],
        ).eval(),
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _clip_text_model(projection_dim: int) -> CLIPTextModelWithProjection:
    """A CLIP text encoder of as many positions as HiDream's."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=600,
            hidden_size=32,
            intermediate_size=48,
            projection_dim=projection_dim,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=248,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()


def _llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_hidream(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 128, "width": 128}, {"height": 64, "width": 256}, {"height": 112, "width": 144}),
    guidance={
        "none": Guidance({"guidance_scale": 0.0}),
        "one batch": Guidance({"guidance_scale": 5.0}),
    },
    feature_module="final_layer",
)
