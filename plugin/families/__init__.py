"""The transformer families that can be served: how each one's forward splits into embed, block stack and finish."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from plugin.families.base import Family

FAMILY_OF_TRANSFORMER = {
    "DiTTransformer2DModel": ("plugin.families.dit", "DiTFamily"),
    "FluxTransformer2DModel": ("plugin.families.flux", "FluxFamily"),
    "HiDreamImageTransformer2DModel": ("plugin.families.hidream", "HiDreamFamily"),
    "HunyuanVideoTransformer3DModel": ("plugin.families.hunyuan_video", "HunyuanVideoFamily"),
    "WanTransformer3DModel": ("plugin.families.wan", "WanFamily"),
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
