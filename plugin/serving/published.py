"""The numbers of published pipelines that decide what a request costs, for planning without a download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from plugin.serving.defaults import arguments_of, picture_tokens_of
from plugin.serving.experts import Experts
from plugin.tasks import Task, Traits, tasks_of


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
        pipeline: the name of the pipeline's class in diffusers.
        expand_timesteps: whether it has a timestep for each token.
        distilled: whether the pipeline takes no guidance.
        picture_tokens: tokens of an encoded picture that the transformer is given with the text.
    """

    transformer: str
    options: Mapping[str, Any]
    compression: tuple[int, int]
    text_tokens: int
    parameters: float | None = None
    experts: Experts | None = None
    pipeline: str = ""
    expand_timesteps: bool = False
    distilled: bool = False
    picture_tokens: int = 0

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the pipeline can do with pictures."""
        traits = Traits(
            self.experts is not None,
            self.expand_timesteps,
            self.options.get("image_dim") is not None,
            self.options.get("pos_embed_seq_len") is not None,
            self.distilled,
        )
        return tasks_of(self.pipeline, traits)

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
    pipeline="HiDreamImagePipeline",
)

_FLUX = Architecture(
    "FluxTransformer2DModel",
    {"guidance_embeds": True},
    compression=(1, 8),
    text_tokens=512,
    parameters=11.9e9,
    pipeline="FluxPipeline",
)
_FLUX2 = Architecture(
    "Flux2Transformer2DModel",
    {},
    compression=(1, 8),
    text_tokens=512,
    parameters=32.2e9,
    pipeline="Flux2Pipeline",
)
_KLEIN_4B = replace(
    _FLUX2,
    options={
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    parameters=3.88e9,
    pipeline="Flux2KleinPipeline",
)
_KLEIN_9B = replace(
    _KLEIN_4B,
    options={
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12288,
        "guidance_embeds": False,
    },
    parameters=9.08e9,
)
_HUNYUAN = Architecture(
    "HunyuanVideoTransformer3DModel",
    {},
    compression=(4, 8),
    text_tokens=256,
    parameters=12.8e9,
    pipeline="HunyuanVideoPipeline",
)
_HUNYUAN_15 = Architecture(
    "HunyuanVideo15Transformer3DModel",
    {},
    compression=(4, 16),
    text_tokens=1000,
    parameters=8.33e9,
    pipeline="HunyuanVideo15Pipeline",
)
_KREA2 = Architecture(
    "Krea2Transformer2DModel",
    {},
    compression=(4, 8),
    text_tokens=512,
    parameters=12.8e9,
    pipeline="Krea2Pipeline",
)
_QWEN = Architecture(
    "QwenImageTransformer2DModel",
    {},
    compression=(4, 8),
    text_tokens=512,
    parameters=20.4e9,
    pipeline="QwenImagePipeline",
)
_QWEN_EDIT = replace(_QWEN, pipeline="QwenImageEditPlusPipeline")
_WAN = Architecture(
    "WanTransformer3DModel", {}, compression=(4, 8), text_tokens=512, parameters=14.3e9, pipeline="WanPipeline"
)
_WAN_I2V = replace(
    _WAN,
    options={"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    parameters=16.4e9,
    pipeline="WanImageToVideoPipeline",
    picture_tokens=257,  # of CLIP's encoder
)
_WAN_FLF2V = replace(_WAN_I2V, options={**_WAN_I2V.options, "pos_embed_seq_len": 2 * 257}, picture_tokens=2 * 257)

PUBLISHED: Mapping[str, Architecture] = MappingProxyType(
    {
        "black-forest-labs/FLUX.1-dev": _FLUX,
        "black-forest-labs/FLUX.1-schnell": replace(_FLUX, options={}),
        "black-forest-labs/FLUX.1-Kontext-dev": replace(_FLUX, pipeline="FluxKontextPipeline"),
        "black-forest-labs/FLUX.1-Fill-dev": replace(
            _FLUX,
            options={**_FLUX.options, "in_channels": 384, "out_channels": 64},
            pipeline="FluxFillPipeline",
        ),
        "black-forest-labs/FLUX.2-dev": _FLUX2,
        "black-forest-labs/FLUX.2-klein-4B": _KLEIN_4B,
        "black-forest-labs/FLUX.2-klein-9B": _KLEIN_9B,
        "black-forest-labs/FLUX.2-klein-base-4B": _KLEIN_4B,
        "black-forest-labs/FLUX.2-klein-base-9B": _KLEIN_9B,
        "facebook/DiT-XL-2-256": Architecture(
            "DiTTransformer2DModel",
            {"out_channels": 8},
            compression=(1, 8),
            text_tokens=0,
            parameters=675e6,
            pipeline="DiTPipeline",
        ),
        "hunyuanvideo-community/HunyuanVideo": _HUNYUAN,
        "hunyuanvideo-community/HunyuanVideo-I2V": replace(
            _HUNYUAN,
            options={"image_condition_type": "token_replace"},
            pipeline="HunyuanVideoImageToVideoPipeline",
            picture_tokens=picture_tokens_of("token_replace"),
        ),
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": _HUNYUAN_15,
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v": _HUNYUAN_15,
        "krea/Krea-2-Raw": _KREA2,
        "krea/Krea-2-Turbo": _KREA2,
        "Qwen/Qwen-Image": _QWEN,
        "Qwen/Qwen-Image-Edit-2509": _QWEN_EDIT,
        "Qwen/Qwen-Image-Edit-2511": replace(_QWEN_EDIT, options={"zero_cond_t": True}),
        "stabilityai/stable-diffusion-3.5-large": Architecture(
            "SD3Transformer2DModel",
            {
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "pos_embed_max_size": 192,
                "qk_norm": "rms_norm",
            },
            compression=(1, 8),
            text_tokens=256,
            parameters=8.06e9,
            pipeline="StableDiffusion3Pipeline",
        ),
        "Tongyi-MAI/Z-Image-Turbo": Architecture(
            "ZImageTransformer2DModel",
            {},
            compression=(1, 8),
            text_tokens=512,
            parameters=6.15e9,
            pipeline="ZImagePipeline",
        ),
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": replace(
            _WAN, options={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, parameters=1.42e9
        ),
        "Wan-AI/Wan2.1-T2V-14B-Diffusers": _WAN,
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": _WAN_I2V,
        "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": _WAN_I2V,
        "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": _WAN_FLF2V,
        "HiDream-ai/HiDream-I1-Full": _HIDREAM,
        "HiDream-ai/HiDream-I1-Dev": _HIDREAM,
        "HiDream-ai/HiDream-I1-Fast": _HIDREAM,
    }
)
