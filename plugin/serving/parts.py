"""What pipelines consist of beside their transformers: the classes and options of published encoders and autoencoders.

Options are those of the published configurations, as far as they decide sizes. Where a model's card or a paper says how
many parameters a part has, the test of this module holds the class of these options to that number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class PipelinePart:
    """A module of a pipeline, as its configuration describes it.

    Attributes:
        package: of its class: "diffusers", "transformers", or as a pipeline's index names another one.
        class_name: the name of its class.
        options: of its configuration, in JSON.
    """

    package: str
    class_name: str
    options: str = "{}"

    @classmethod
    def of(cls, package: str, class_name: str, options: Mapping[str, Any]) -> PipelinePart:
        """The part of these options."""
        return cls(package, class_name, json.dumps(options, sort_keys=True))


def _encoder(class_name: str, **options: Any) -> PipelinePart:
    return PipelinePart.of("transformers", class_name, options)


def _autoencoder(class_name: str, **options: Any) -> PipelinePart:
    return PipelinePart.of("diffusers", class_name, options)


_T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
_CLIP = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
_LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
_LLAVA_TEXT = {**_LLAMA, "vocab_size": 128320, "model_type": "llama"}
_QWEN2_5 = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_QWEN3 = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}

_T5_XXL = _encoder("T5EncoderModel", vocab_size=32128, **_T5)
_UMT5_XXL = _encoder("UMT5EncoderModel", vocab_size=256384, **_T5)
_BYT5 = _encoder(  # ByT5 small, with the words of Glyph
    "T5EncoderModel",
    **{**_T5, "vocab_size": 1510, "d_model": 1472, "d_ff": 3584, "num_layers": 12, "num_heads": 6},
)
_CLIP_L = _encoder("CLIPTextModel", **_CLIP)
_CLIP_L_PROJECTED = _encoder("CLIPTextModelWithProjection", **_CLIP)
_CLIP_G_PROJECTED = _encoder(
    "CLIPTextModelWithProjection",
    **{
        **_CLIP,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    },
)
_CLIP_H_PICTURES = _encoder(
    "CLIPVisionModel",
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
)
_LLAVA = _encoder(
    "LlavaForConditionalGeneration",
    text_config=_LLAVA_TEXT,
    vision_config={
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
)
_QWEN2_5_VL = _encoder(
    "Qwen2_5_VLForConditionalGeneration",
    text_config=_QWEN2_5,
    vision_config={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
    },
    tie_word_embeddings=False,
)
_QWEN3_VL = _encoder(
    "Qwen3VLModel",
    text_config={
        **_QWEN3,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    vision_config={
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "deepstack_visual_indexes": [5, 11, 17],
    },
)
_MISTRAL_SMALL = _encoder(
    "Mistral3ForConditionalGeneration",
    text_config={
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    vision_config={
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "head_dim": 64,
        "image_size": 1540,
        "patch_size": 14,
    },
    tie_word_embeddings=False,
)

_OF_PICTURES = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
_VAE_SD = _autoencoder("AutoencoderKL", **_OF_PICTURES, latent_channels=4, sample_size=256)
_VAE_FLUX = _autoencoder(
    "AutoencoderKL",
    **_OF_PICTURES,
    latent_channels=16,
    use_quant_conv=False,
    use_post_quant_conv=False,
    sample_size=1024,
)

_FLUX = {"text_encoder": _CLIP_L, "text_encoder_2": _T5_XXL, "vae": _VAE_FLUX}
_FLUX2 = {"text_encoder": _MISTRAL_SMALL, "vae": _autoencoder("AutoencoderKLFlux2")}
_KLEIN_4B = {**_FLUX2, "text_encoder": _encoder("Qwen3ForCausalLM", **_QWEN3)}
_KLEIN_9B = {
    **_FLUX2,
    "text_encoder": _encoder(
        "Qwen3ForCausalLM",
        **{**_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    ),
}
_HUNYUAN = {
    "text_encoder": _encoder("LlamaModel", **_LLAVA_TEXT),
    "text_encoder_2": _CLIP_L,
    "vae": _autoencoder("AutoencoderKLHunyuanVideo"),
}
_HUNYUAN_15 = {
    "text_encoder": _encoder("Qwen2_5_VLTextModel", **_QWEN2_5),
    "text_encoder_2": _BYT5,
    "vae": _autoencoder("AutoencoderKLHunyuanVideo15"),
}
_QWEN_VAE = _autoencoder("AutoencoderKLQwenImage")
_KREA2 = {"text_encoder": _QWEN3_VL, "vae": _QWEN_VAE}
_QWEN = {"text_encoder": _QWEN2_5_VL, "vae": _QWEN_VAE}
_SD3 = {
    "text_encoder": _CLIP_L_PROJECTED,
    "text_encoder_2": _CLIP_G_PROJECTED,
    "text_encoder_3": _T5_XXL,
    "vae": _VAE_FLUX,
}
_HIDREAM = {**_SD3, "text_encoder_4": _encoder("LlamaForCausalLM", **_LLAMA)}  # its two CLIPs read longer texts
_WAN = {"text_encoder": _UMT5_XXL, "vae": _autoencoder("AutoencoderKLWan")}
_WAN_I2V = {**_WAN, "image_encoder": _CLIP_H_PICTURES}

PARTS: Mapping[str, Mapping[str, PipelinePart]] = MappingProxyType(
    {
        "black-forest-labs/FLUX.1-dev": _FLUX,
        "black-forest-labs/FLUX.1-schnell": _FLUX,
        "black-forest-labs/FLUX.1-Kontext-dev": _FLUX,
        "black-forest-labs/FLUX.1-Fill-dev": _FLUX,
        "black-forest-labs/FLUX.2-dev": _FLUX2,
        "black-forest-labs/FLUX.2-klein-4B": _KLEIN_4B,
        "black-forest-labs/FLUX.2-klein-9B": _KLEIN_9B,
        "black-forest-labs/FLUX.2-klein-base-4B": _KLEIN_4B,
        "black-forest-labs/FLUX.2-klein-base-9B": _KLEIN_9B,
        "facebook/DiT-XL-2-256": {"vae": _VAE_SD},
        "hunyuanvideo-community/HunyuanVideo": _HUNYUAN,
        "hunyuanvideo-community/HunyuanVideo-I2V": {**_HUNYUAN, "text_encoder": _LLAVA},
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": _HUNYUAN_15,
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v": _HUNYUAN_15,
        "krea/Krea-2-Raw": _KREA2,
        "krea/Krea-2-Turbo": _KREA2,
        "Qwen/Qwen-Image": _QWEN,
        "Qwen/Qwen-Image-Edit-2509": _QWEN,
        "Qwen/Qwen-Image-Edit-2511": _QWEN,
        "stabilityai/stable-diffusion-3.5-large": _SD3,
        "Tongyi-MAI/Z-Image-Turbo": {"text_encoder": _encoder("Qwen3Model", **_QWEN3), "vae": _VAE_FLUX},
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _WAN,
        "Wan-AI/Wan2.1-T2V-14B-Diffusers": _WAN,
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": _WAN_I2V,
        "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": _WAN_I2V,
        "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": _WAN_I2V,
        "HiDream-ai/HiDream-I1-Full": _HIDREAM,
        "HiDream-ai/HiDream-I1-Dev": _HIDREAM,
        "HiDream-ai/HiDream-I1-Fast": _HIDREAM,
    }
)
