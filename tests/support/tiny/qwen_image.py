"""A tiny Qwen-Image: 3 dual blocks, text as long as the prompt, an autoencoder of 8x; and its editing pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import PaddleOCRVLProcessor, Qwen2VLImageProcessorPil

from tests.support.tiny.encoders_served import lively, qwen25_vl, qwen_image_autoencoder, ready
from tests.support.tiny.family import Guidance, TinyFamily
from tests.support.tiny.text import qwen_tokenizer

TEMPLATES = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n",
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n",
    "Picture 1: ",
)


def tiny_qwen_image(folder: Path, *, dtype: torch.dtype = torch.float32) -> QwenImagePipeline:
    """A QwenImagePipeline of random weights, with the schedule that Qwen-Image is published with.

    Args:
        folder: not used, the tokenizer needs no file.
        dtype: of all weights.
    """
    return ready(QwenImagePipeline(**_components()), dtype)


def tiny_qwen_image_edit(
    folder: Path, *, dtype: torch.dtype = torch.float32, zero_cond_t: bool = False
) -> QwenImageEditPlusPipeline:
    """A QwenImageEditPlusPipeline of random weights. It takes one prompt a call.

    Its processor is not Qwen2VLProcessor, whose part for videos needs torchvision, but one that takes pictures alone
    and makes the same of them and the text; diffusers logs that it expected the other.

    Args:
        folder: not used, the tokenizer needs no file.
        dtype: of all weights.
        zero_cond_t: tokens of the pictures to edit have the timestep 0, as in Qwen-Image-Edit-2511.
    """
    components = _components(zero_cond_t=zero_cond_t)
    processor = PaddleOCRVLProcessor(
        image_processor=Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}),
        tokenizer=components["tokenizer"],
    )
    return ready(QwenImageEditPlusPipeline(**components, processor=processor), dtype)


def small_pictures(monkeypatch: pytest.MonkeyPatch, side: int = 64) -> None:
    """Lets the editing pipeline scale pictures to about side x side, not to a million pixels."""
    monkeypatch.setattr("diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE", side**2)


def _components(**options: Any) -> dict[str, Any]:
    """What both pipelines have; with more options of the transformer."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(*TEMPLATES)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        **options,
    )
    lively(transformer, 2.0)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        "vae": qwen_image_autoencoder(),
        "text_encoder": qwen25_vl(tokenizer),
        "tokenizer": tokenizer,
        "transformer": transformer,
    }


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_qwen_image(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "max_sequence_length": 16},
    batch={"prompt": ["a red apple", "a blue house under the sun"]},
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 96}),
    guidance={
        "none": Guidance({"true_cfg_scale": 1.0}),
        "separate calls": Guidance({"negative_prompt": "ugly", "true_cfg_scale": 3.0}, calls=2),
    },
    feature_module="norm_out",
)
