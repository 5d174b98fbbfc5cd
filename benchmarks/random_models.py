"""Transformers and pipelines of published architectures with random weights, for measurements that do not depend on the
weights. Encoders are left out: prompts are random embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from torch import nn

from plugin.config import ModelConfig
from plugin.serving.published import Architecture

MODELS = ("dit_xl_2_256", "wan2_1_t2v", "flux_dev", "hunyuan_video", "hidream_full")  # from the smallest to the largest


def random_transformer(architecture: Architecture, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The transformer of an architecture. Its weights are made on the device, since a large one does not fit twice.

    Args:
        architecture: its class and options.
        dtype: of all weights.
        device: where to make them.
    """
    with _default(dtype, device):
        return getattr(diffusers, architecture.transformer)(**architecture.options).eval()


def random_pipeline(transformer: nn.Module, text_tokens: int, tiny: bool = False) -> tuple[Any, dict[str, Any]]:
    """A pipeline around a transformer without encoders, and the arguments of its call that stand for a prompt.

    The result of a call is latents, except for DiT, whose pipeline always decodes: it gets an autoencoder of the
    published shape. Schedulers are those of the published pipelines.

    Args:
        transformer: of a class that `random_transformer` makes.
        text_tokens: of the prompt.
        tiny: an autoencoder as deep as the published one, but narrow.
    """
    name = type(transformer).__name__
    if name not in _AROUND:
        raise TypeError(f"transformer is a {name}, whose pipeline is not known here")
    return _AROUND[name](transformer, text_tokens, tiny)


def _dit(transformer: nn.Module, text_tokens: int, tiny: bool) -> tuple[Any, dict[str, Any]]:
    like = _like(transformer)
    with _default(like.dtype, like.device):
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=[32] * 4 if tiny else [128, 256, 512, 512],
            layers_per_block=2,
        ).eval()
    pipe = _pipeline(diffusers.DiTPipeline, transformer, diffusers.DDIMScheduler(), vae)
    return pipe, {"class_labels": [1], "output_type": "np"}


def _flux(transformer: nn.Module, text_tokens: int, tiny: bool) -> tuple[Any, dict[str, Any]]:
    config: Any = transformer.config
    shapes = {
        "prompt_embeds": (1, text_tokens, config.joint_attention_dim),
        "pooled_prompt_embeds": (1, config.pooled_projection_dim),
    }
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return _pipeline(diffusers.FluxPipeline, transformer, scheduler), _embeddings(transformer, shapes)


def _wan(transformer: nn.Module, text_tokens: int, tiny: bool) -> tuple[Any, dict[str, Any]]:
    config: Any = transformer.config
    shape = 1, text_tokens, config.text_dim
    shapes = {"prompt_embeds": shape, "negative_prompt_embeds": shape}
    return _pipeline(diffusers.WanPipeline, transformer, _multistep()), _embeddings(transformer, shapes)


def _hunyuan_video(transformer: nn.Module, text_tokens: int, tiny: bool) -> tuple[Any, dict[str, Any]]:
    config: Any = transformer.config
    shapes = {
        "prompt_embeds": (1, text_tokens, config.text_embed_dim),
        "pooled_prompt_embeds": (1, config.pooled_projection_dim),
    }
    mask = torch.ones(1, text_tokens, dtype=torch.long, device=_like(transformer).device)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe = _pipeline(diffusers.HunyuanVideoPipeline, transformer, scheduler)
    return pipe, _embeddings(transformer, shapes) | {"prompt_attention_mask": mask}


def _hidream(transformer: nn.Module, text_tokens: int, tiny: bool) -> tuple[Any, dict[str, Any]]:
    config: Any = transformer.config
    t5, llama = config.caption_channels
    shapes = {
        "prompt_embeds_t5": (1, text_tokens, t5),
        "prompt_embeds_llama3": (max(config.llama_layers) + 1, 1, text_tokens, llama),
        "pooled_prompt_embeds": (1, config.text_emb_dim),
    }
    both = {f"{negative}{name}": shape for negative in ("", "negative_") for name, shape in shapes.items()}
    return _pipeline(diffusers.HiDreamImagePipeline, transformer, _multistep()), _embeddings(transformer, both)


_AROUND = {
    "DiTTransformer2DModel": _dit,
    "FluxTransformer2DModel": _flux,
    "WanTransformer3DModel": _wan,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "HiDreamImageTransformer2DModel": _hidream,
}


def _like(transformer: nn.Module) -> torch.Tensor:
    return next(transformer.parameters())


def _embeddings(transformer: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arguments of a call: a random tensor of each shape, and that latents are to come out."""
    like = _like(transformer)
    prompt = {name: torch.randn(shape, dtype=like.dtype, device=like.device) for name, shape in shapes.items()}
    return prompt | {"output_type": "latent"}


def _multistep() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def _pipeline(pipeline: Any, transformer: nn.Module, scheduler: Any, vae: Any = None) -> Any:
    arguments = inspect.signature(pipeline.__init__).parameters.values()
    missing = {each.name: None for each in arguments if each.default is each.empty and each.name != "self"}
    pipe = pipeline(**missing | {"transformer": transformer, "scheduler": scheduler, "vae": vae})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dtype_of(config: ModelConfig) -> torch.dtype:
    """The dtype that a model's transformer is served in."""
    return getattr(torch, config.source.dtype_of("transformer"))


@contextmanager
def _default(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(dtype)
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
