"""What diffusers' classes have where a configuration leaves it out, as far as planning needs it.

Written down, because diffusers takes seconds to import. The test of this module compares each number with diffusers'
own signatures.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

ARGUMENTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "DiTTransformer2DModel": {
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "num_layers": 28,
            "sample_size": 32,
            "patch_size": 2,
        },
        "FluxTransformer2DModel": {
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "num_layers": 19,
            "num_single_layers": 38,
        },
        "Flux2Transformer2DModel": {
            "num_attention_heads": 48,
            "attention_head_dim": 128,
            "num_layers": 8,
            "num_single_layers": 48,
        },
        "HiDreamImageTransformer2DModel": {
            "num_attention_heads": 20,
            "attention_head_dim": 128,
            "num_layers": 16,
            "num_single_layers": 32,
            "max_resolution": (128, 128),
        },
        "HunyuanVideoTransformer3DModel": {
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "num_layers": 20,
            "num_single_layers": 40,
            "patch_size": 2,
            "patch_size_t": 1,
        },
        "HunyuanVideo15Transformer3DModel": {
            "num_attention_heads": 16,
            "attention_head_dim": 128,
            "num_layers": 54,
            "patch_size": 1,
            "patch_size_t": 1,
        },
        "Krea2Transformer2DModel": {"num_attention_heads": 48, "attention_head_dim": 128, "num_layers": 28},
        "QwenImageTransformer2DModel": {"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 60},
        "SD3Transformer2DModel": {
            "num_attention_heads": 18,
            "attention_head_dim": 64,
            "num_layers": 18,
            "patch_size": 2,
        },
        "WanTransformer3DModel": {
            "num_attention_heads": 40,
            "attention_head_dim": 128,
            "num_layers": 40,
            "patch_size": (1, 2, 2),
        },
        "ZImageTransformer2DModel": {"dim": 3840, "n_layers": 30},
        "AutoencoderKL": {"block_out_channels": (64,)},
        "AutoencoderTiny": {},  # it saves block_out_channels, which no argument is called
        "AutoencoderKLFlux2": {"block_out_channels": (128, 256, 512, 512)},
        "AutoencoderKLHunyuanVideo15": {"temporal_compression_ratio": 4, "spatial_compression_ratio": 16},
        "AutoencoderKLHunyuanVideo": {"temporal_compression_ratio": 4, "spatial_compression_ratio": 8},
        "AutoencoderKLWan": {"scale_factor_temporal": 4, "scale_factor_spatial": 8},
    }
)

TEXT_TOKENS: Mapping[str, int] = MappingProxyType(
    {
        "DiTPipeline": 0,
        "Flux2KleinPipeline": 512,
        "Flux2Pipeline": 512,
        "FluxPipeline": 512,
        "FluxKontextPipeline": 512,
        "HiDreamImagePipeline": 128,
        "HunyuanVideoPipeline": 256,
        "Krea2Pipeline": 512,
        "QwenImageEditPlusPipeline": 512,
        "QwenImagePipeline": 512,
        "StableDiffusion3Pipeline": 256,
        "WanPipeline": 512,
        "WanImageToVideoPipeline": 512,
        "ZImagePipeline": 512,
    }
)

# Of pipelines that have no argument for it: what they set themselves, or the longest that their tokenizers give.
TOKENS_WITHIN: Mapping[str, int] = MappingProxyType(
    {
        "EasyAnimatePipeline": 256,
        "ErnieImagePipeline": 512,
        "HunyuanDiTPipeline": 77,
        "HunyuanImagePipeline": 1000,
        "HunyuanVideo15Pipeline": 1000,
        "LongCatImagePipeline": 512,
        "PRXPipeline": 256,
    }
)


# Of the picture that HunyuanVideoImageToVideoPipeline encodes with the text: every second or fourth of 576, less one
# token of the text (diffusers 0.42.0, `_get_llama_prompt_embeds`).
_SEEN_TOKENS = {"latent_concat": 576 // 2 - 1, "token_replace": 576 // 4 - 1}


def picture_tokens_of(
    condition: str | None = None, two_pictures: int | None = None, encoder: Mapping[str, Any] | None = None
) -> int:
    """The tokens of an encoded picture that a transformer is given with those of the text.

    Args:
        condition: the transformer's `image_condition_type`, of HunyuanVideo.
        two_pictures: its `pos_embed_seq_len`: the tokens of first and last frame, of Wan.
        encoder: the configuration of the pipeline's image encoder, of Wan; None where it has none.
    """
    if condition is not None:
        return _SEEN_TOKENS[condition]
    if two_pictures is not None:
        return two_pictures
    return (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1 if encoder else 0


def arguments_of(class_name: str) -> Mapping[str, Any]:
    """The defaults of a class's arguments: those in `ARGUMENTS`, or all of a class that is not there."""
    if class_name in ARGUMENTS:
        return ARGUMENTS[class_name]
    import diffusers  # takes seconds, which the classes of served models do not need

    return signature_defaults(getattr(diffusers, class_name).__init__)


def text_tokens_of(pipeline_class: str) -> int:
    """The tokens of text that a pipeline takes by default; 0 where it takes no text."""
    for known in (TEXT_TOKENS, TOKENS_WITHIN):
        if pipeline_class in known:
            return known[pipeline_class]
    import diffusers  # as in arguments_of

    return signature_defaults(getattr(diffusers, pipeline_class).__call__).get("max_sequence_length", 0)


def signature_defaults(function: Any) -> dict[str, Any]:
    """The defaults of a function's arguments, by name; those without one are left out."""
    arguments = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in arguments if each.default is not each.empty}
