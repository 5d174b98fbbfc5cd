"""The transformer families that can be served: how each one's forward splits into embed, block stack and finish."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from plugin.families.base import Family

_WRITTEN = {
    "DiTTransformer2DModel": ("plugin.families.dit", "DiTFamily"),
    "FluxTransformer2DModel": ("plugin.families.flux", "FluxFamily"),
    "HiDreamImageTransformer2DModel": ("plugin.families.hidream", "HiDreamFamily"),
    "HunyuanVideoTransformer3DModel": ("plugin.families.hunyuan_video", "HunyuanVideo"),
    "WanTransformer3DModel": ("plugin.families.wan", "Wan"),
}
_IMAGES = {
    "AuraFlowTransformer2DModel": "AuraFlow",
    "BriaTransformer2DModel": "Bria",
    "ChromaTransformer2DModel": "Chroma",
    "CogView3PlusTransformer2DModel": "CogView3Plus",
    "CogView4Transformer2DModel": "CogView4",
    "Flux2Transformer2DModel": "Flux2",
    "HunyuanImageTransformer2DModel": "HunyuanImage",
    "LongCatImageTransformer2DModel": "LongCat",
    "OvisImageTransformer2DModel": "Ovis",
    "QwenImageTransformer2DModel": "QwenImage",
    "SD3Transformer2DModel": "StableDiffusion3",
}
_SINGLE_STREAM_IMAGES = {
    "ErnieImageTransformer2DModel": "Ernie",
    "HunyuanDiT2DModel": "HunyuanDiT",
    "Krea2Transformer2DModel": "Krea2",
    "Lumina2Transformer2DModel": "Lumina2",
    "LuminaNextDiT2DModel": "LuminaNext",
    "NucleusMoEImageTransformer2DModel": "NucleusMoE",
    "PRXTransformer2DModel": "Prx",
    "PixArtTransformer2DModel": "PixArt",
    "SanaTransformer2DModel": "Sana",
    "ZImageTransformer2DModel": "ZImage",
}
_VIDEOS = {
    "AllegroTransformer3DModel": "Allegro",
    "CogVideoXTransformer3DModel": "CogVideoX",
    "CosmosTransformer3DModel": "Cosmos",
    "EasyAnimateTransformer3DModel": "EasyAnimate",
    "HunyuanVideo15Transformer3DModel": "HunyuanVideo15",
    "Kandinsky5Transformer3DModel": "Kandinsky5",
    "LTXVideoTransformer3DModel": "Ltx",
    "MochiTransformer3DModel": "Mochi",
    "SanaVideoTransformer3DModel": "SanaVideo",
    "SkyReelsV2Transformer3DModel": "SkyReelsV2",
}
# The class of a transformer -> the module and the class of its family
FAMILY_OF_TRANSFORMER = {
    **_WRITTEN,
    **{
        transformer: (f"plugin.families.{module}", family)
        for module, declared in (
            ("images", _IMAGES),
            ("single_stream_images", _SINGLE_STREAM_IMAGES),
            ("videos", _VIDEOS),
        )
        for transformer, family in declared.items()
    },
}


def family_of(transformer: nn.Module) -> Family:
    """The family of a diffusers transformer.

    Raises:
        TypeError: no family serves this class; the message lists those that are served.
    """
    return family_class(type(transformer).__name__).of(transformer)


def family_class(transformer: str) -> type[Family]:
    """The family of a diffusers class of transformers, by the class's name.

    Raises:
        TypeError: as `family_of`.
    """
    if transformer not in FAMILY_OF_TRANSFORMER:
        known = ", ".join(FAMILY_OF_TRANSFORMER)
        raise TypeError(f"transformer is a {transformer}, must be one of: {known}")
    module, family = FAMILY_OF_TRANSFORMER[transformer]
    return getattr(import_module(module), family)
