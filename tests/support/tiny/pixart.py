"""A tiny PixArt-Sigma, or alpha: 3 blocks with cross attention, an autoencoder of 8x, learned variance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import t5_text_model, t5_tokenizer


def tiny_pixart(
    folder: Path, *, dtype: torch.dtype = torch.float32, pipeline_class: type[Any] = PixArtSigmaPipeline
) -> Any:
    """A PixArt pipeline of random weights, with the scheduler that PixArt is published with.

    Args:
        folder: an empty folder for the tokenizer's file.
        dtype: of all weights.
        pipeline_class: PixArtSigmaPipeline, or PixArtAlphaPipeline, which also tells the model the picture's size.
    """
    torch.manual_seed(0)
    alpha = issubclass(pipeline_class, PixArtAlphaPipeline)
    pipe = pipeline_class(
        scheduler=DPMSolverMultistepScheduler(),
        vae=autoencoder(),
        text_encoder=t5_text_model(),
        tokenizer=t5_tokenizer(folder),
        transformer=PixArtTransformer2DModel(
            sample_size=128 if alpha else 8,  # the alpha pipeline tells the picture's size to models of 128 only
            num_layers=3,
            attention_head_dim=12,
            num_attention_heads=2,
            caption_channels=32,
            cross_attention_dim=24,
            use_additional_conditions=alpha,
        ),
    )
    return ready(pipe, dtype)


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_pixart(folder, dtype=dtype),
    arguments={
        "prompt": "a red apple",
        "clean_caption": False,
        "use_resolution_binning": False,
        "max_sequence_length": 16,
    },
    batch={"prompt": ["a red apple", "a blue house"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 32}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"negative_prompt": "ugly", "guidance_scale": 4.5}),
    },
    feature_module="norm_out",
)
