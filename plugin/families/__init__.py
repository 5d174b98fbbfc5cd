"""The transformer families that can be served: how each one's forward splits into embed, block stack and finish."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from plugin.families.base import Family

FAMILY_OF_TRANSFORMER = {
    "FluxTransformer2DModel": ("plugin.families.flux", "FluxFamily"),
}


def family_of(transformer: nn.Module) -> Family:
    """The family of a diffusers transformer.

    Raises:
        TypeError: no family serves this class; the message lists those that are served.
    """
    name = type(transformer).__name__
    if name not in FAMILY_OF_TRANSFORMER:
        known = ", ".join(FAMILY_OF_TRANSFORMER)
        raise TypeError(f"transformer is a {name}, must be one of: {known}")
    module, family = FAMILY_OF_TRANSFORMER[name]
    return getattr(import_module(module), family)(transformer)
