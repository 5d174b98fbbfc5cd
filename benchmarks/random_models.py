"""Transformers and pipelines of published architectures with random weights, for measurements that do not depend on the
weights. Encoders are left out: prompts are random embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
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
    config: Any = transformer.config
    like = next(transformer.parameters())

    def embedding(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=like.dtype, device=like.device)

    flow = diffusers.FlowMatchEulerDiscreteScheduler
    multistep = diffusers.UniPCMultistepScheduler
    vae = None
    match type(transformer).__name__:
        case "DiTTransformer2DModel":
            pipeline, scheduler = diffusers.DiTPipeline, diffusers.DDIMScheduler()
            channels = [32] * 4 if tiny else [128, 256, 512, 512]
            with _default(like.dtype, like.device):
                vae = diffusers.AutoencoderKL(
                    down_block_types=("DownEncoderBlock2D",) * 4,
                    up_block_types=("UpDecoderBlock2D",) * 4,
                    block_out_channels=channels,
                    layers_per_block=2,
                ).eval()
            return _pipeline(pipeline, transformer, scheduler, vae), {"class_labels": [1], "output_type": "np"}
        case "FluxTransformer2DModel":
            pipeline, scheduler = diffusers.FluxPipeline, flow(shift=3.0, use_dynamic_shifting=True)
            prompt = {
                "prompt_embeds": embedding(1, text_tokens, config.joint_attention_dim),
                "pooled_prompt_embeds": embedding(1, config.pooled_projection_dim),
            }
        case "WanTransformer3DModel":
            pipeline = diffusers.WanPipeline
            scheduler = multistep(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
            prompt = {
                name: embedding(1, text_tokens, config.text_dim) for name in ("prompt_embeds", "negative_prompt_embeds")
            }
        case "HunyuanVideoTransformer3DModel":
            pipeline, scheduler = diffusers.HunyuanVideoPipeline, flow(shift=7.0)
            prompt = {
                "prompt_embeds": embedding(1, text_tokens, config.text_embed_dim),
                "pooled_prompt_embeds": embedding(1, config.pooled_projection_dim),
                "prompt_attention_mask": torch.ones(1, text_tokens, dtype=torch.long, device=like.device),
            }
        case "HiDreamImageTransformer2DModel":
            pipeline = diffusers.HiDreamImagePipeline
            scheduler = multistep(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
            t5, llama = config.caption_channels
            layers = max(config.llama_layers) + 1
            prompt = {
                f"{negative}{name}": embedding(*shape)
                for negative in ("", "negative_")
                for name, shape in (
                    ("prompt_embeds_t5", (1, text_tokens, t5)),
                    ("prompt_embeds_llama3", (layers, 1, text_tokens, llama)),
                    ("pooled_prompt_embeds", (1, config.text_emb_dim)),
                )
            }
        case name:
            raise TypeError(f"transformer is a {name}, whose pipeline is not known here")
    return _pipeline(pipeline, transformer, scheduler, vae), prompt | {"output_type": "latent"}


def _pipeline(pipeline: Any, transformer: nn.Module, scheduler: Any, vae: Any) -> Any:
    arguments = inspect.signature(pipeline.__init__).parameters.values()
    missing = {each.name: None for each in arguments if each.default is each.empty and each.name != "self"}
    pipe = pipeline(**missing | {"transformer": transformer, "scheduler": scheduler, "vae": vae})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dtype_of(config: ModelConfig) -> torch.dtype:
    """The dtype that a model's transformer is served in."""
    return getattr(torch, dict(config.source.component_dtypes).get("transformer", config.source.dtype))


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
