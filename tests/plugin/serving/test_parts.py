"""Encoders and autoencoders of published pipelines: of the classes that diffusers declares, as large as published."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_type_hints

import diffusers
import pytest
import torch
from torch import nn

from plugin.config import PipelineSource
from plugin.serving.components import history_of, parts_of
from plugin.serving.parts import PARTS
from plugin.serving.published import PUBLISHED
from plugin.serving.weights import on_meta

# What some pipelines have and others of the same class do not (FLUX Redux and IP-Adapters, Wan's second expert).
OPTIONAL = {"image_encoder", "transformer_2"}


def declared(pipeline: str) -> dict[str, Any]:
    """The modules that a pipeline's constructor takes, by name; some are declared as a class or None."""
    hints = get_type_hints(getattr(diffusers, pipeline).__init__)
    kinds = {
        name: next((each for each in get_args(kind) if each is not NoneType), kind) for name, kind in hints.items()
    }
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, nn.Module)}


@pytest.mark.parametrize("pipeline", PUBLISHED)
def test_a_published_pipeline_has_the_parts_that_its_class_declares(pipeline):
    wanted = declared(PUBLISHED[pipeline].pipeline)
    parts = parts_of(PipelineSource(pipeline))
    assert wanted.keys() - OPTIONAL <= parts.keys() <= wanted.keys()
    for name, part in parts.items():
        made = type(on_meta(part, torch.bfloat16))
        assert issubclass(made, wanted[name]), f"{name} is a {made.__name__}"
    assert ("image_encoder" in parts) == (PUBLISHED[pipeline].options.get("image_dim") is not None)


# Numbers of parameters as the hub reads them off the files: of the models themselves, or (T5, UMT5, CLIP) of the
# encoders alone.
PARAMETERS = {
    ("black-forest-labs/FLUX.1-dev", "text_encoder"): 123_060_480,
    ("black-forest-labs/FLUX.1-dev", "text_encoder_2"): 4_762_310_656,
    ("black-forest-labs/FLUX.1-dev", "vae"): 83_819_683,
    ("black-forest-labs/FLUX.2-dev", "text_encoder"): 24_011_361_280,  # Mistral-Small-3.2-24B-Instruct-2506
    ("black-forest-labs/FLUX.2-klein-4B", "text_encoder"): 4_022_468_096,  # Qwen3-4B
    ("black-forest-labs/FLUX.2-klein-9B", "text_encoder"): 8_190_735_360,  # Qwen3-8B
    ("facebook/DiT-XL-2-256", "vae"): 83_653_863,  # sd-vae-ft-mse
    ("HiDream-ai/HiDream-I1-Full", "text_encoder_2"): 694_659_840,  # CLIP-ViT-bigG-14
    ("HiDream-ai/HiDream-I1-Full", "text_encoder_4"): 8_030_261_248,  # Llama-3.1-8B-Instruct
    ("krea/Krea-2-Raw", "text_encoder"): 4_437_815_808,  # Qwen3-VL-4B-Instruct
    ("Qwen/Qwen-Image", "text_encoder"): 8_292_166_656,  # Qwen2.5-VL-7B-Instruct
    ("Qwen/Qwen-Image", "vae"): 126_892_531,
    ("Wan-AI/Wan2.1-T2V-14B-Diffusers", "text_encoder"): 5_680_910_336,
    ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "image_encoder"): 630_766_080,  # CLIP-ViT-H-14, its vision alone
}


@pytest.mark.parametrize(("place", "parameters"), PARAMETERS.items(), ids=map("/".join, PARAMETERS))
def test_parts_have_the_published_number_of_parameters(place, parameters):
    pipeline, name = place
    module = on_meta(PARTS[pipeline][name], torch.bfloat16)
    assert sum(each.numel() for each in module.parameters()) == parameters


# https://huggingface.co/blog/diffusers-quantization: bytes of FLUX.1-dev's components in bfloat16.
@pytest.mark.parametrize(
    ("name", "nbytes"),
    [("transformer", 23.8e9), ("text_encoder", 246e6), ("text_encoder_2", 9.52e9), ("vae", 168e6)],
)
def test_fluxs_components_are_as_large_as_published(name, nbytes):
    """Within 0.3 %: they are given in three digits."""
    module = on_meta(parts_of(PipelineSource("black-forest-labs/FLUX.1-dev"))[name], torch.bfloat16)
    assert sum(each.nbytes for each in module.parameters()) == pytest.approx(nbytes, rel=0.003)


def test_a_scheduler_keeps_as_many_latents_as_its_order_and_one_more(tmp_path):
    (tmp_path / "scheduler").mkdir()
    path = tmp_path / "scheduler/scheduler_config.json"
    for text, kept in (("{}", 0), ('{"solver_order": 2}', 3)):
        path.write_text(text)
        assert history_of(PipelineSource(str(tmp_path))) == kept
    assert history_of(PipelineSource("Qwen/Qwen-Image")) == 3, "the most that the served ones keep"
