"""The numbers of published pipelines that decide what a request costs, for planning without a download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from plugin.serving.defaults import arguments_of
from plugin.serving.experts import Experts


@dataclass(frozen=True)
class Architecture:
    """What a pipeline's configuration files say of its cost.

    Attributes:
        transformer: the name of the transformer's class in diffusers.
        options: its arguments; those that are the class's defaults may be left out.
        compression: of the autoencoder, in time and in space.
        text_tokens: tokens of text that the pipeline gives the transformer by default.
        parameters: how many the transformer has, as its authors count them; None where that is not known.
        experts: where a second transformer takes over; None where there is one.
    """

    transformer: str
    options: Mapping[str, Any]
    compression: tuple[int, int]
    text_tokens: int
    parameters: float | None = None
    experts: Experts | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """The options, and the defaults that planning needs of those that are left out."""
        return {**arguments_of(self.transformer), **self.options}


_HIDREAM = Architecture(
    "HiDreamImageTransformer2DModel",
    {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "caption_channels": [4096, 4096],
        "axes_dims_rope": (64, 32, 32),
        "llama_layers": [*range(32), *[31] * 16],
    },
    compression=(1, 8),
    text_tokens=128,
    parameters=17e9,
)

PUBLISHED: Mapping[str, Architecture] = MappingProxyType(
    {
        "black-forest-labs/FLUX.1-dev": Architecture(
            "FluxTransformer2DModel",
            {"guidance_embeds": True},
            compression=(1, 8),
            text_tokens=512,
            parameters=11.9e9,
        ),
        "black-forest-labs/FLUX.1-schnell": Architecture(
            "FluxTransformer2DModel", {}, compression=(1, 8), text_tokens=512, parameters=11.9e9
        ),
        "facebook/DiT-XL-2-256": Architecture(
            "DiTTransformer2DModel", {"out_channels": 8}, compression=(1, 8), text_tokens=0, parameters=675e6
        ),
        "hunyuanvideo-community/HunyuanVideo": Architecture(
            "HunyuanVideoTransformer3DModel", {}, compression=(4, 8), text_tokens=256, parameters=12.8e9
        ),
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Architecture(
            "WanTransformer3DModel",
            {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            compression=(4, 8),
            text_tokens=512,
            parameters=1.42e9,
        ),
        "Wan-AI/Wan2.1-T2V-14B-Diffusers": Architecture(
            "WanTransformer3DModel", {}, compression=(4, 8), text_tokens=512, parameters=14.3e9
        ),
        "HiDream-ai/HiDream-I1-Full": _HIDREAM,
        "HiDream-ai/HiDream-I1-Dev": _HIDREAM,
        "HiDream-ai/HiDream-I1-Fast": _HIDREAM,
    }
)
