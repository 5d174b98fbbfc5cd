"""How much smaller the latents are that an autoencoder makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugin.serving.defaults import arguments_of

_OF_PICTURES = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderTiny")


def compression_of(vae: Mapping[str, Any]) -> tuple[int, int]:
    """(in time, in space), from an autoencoder's configuration with the name of its class; the classes of autoencoders
    name it in different ways."""
    class_name = vae["_class_name"]
    vae = {**arguments_of(class_name), **vae}
    for time, space in (
        ("temporal_compression_ratio", "spatial_compression_ratio"),
        ("scale_factor_temporal", "scale_factor_spatial"),
    ):
        if vae.get(space):
            return vae.get(time) or 1, vae[space]
    if class_name in _OF_PICTURES:
        return 1, 2 ** (len(vae["block_out_channels"]) - 1)
    return _of_instance(vae)


def _of_instance(vae: Mapping[str, Any]) -> tuple[int, int]:
    """What an autoencoder of this configuration says of itself, made without memory for its weights."""
    import diffusers  # takes seconds, which the autoencoders of most models do not need
    import torch

    with torch.device("meta"):
        made = getattr(diffusers, vae["_class_name"]).from_config(dict(vae))
    if hasattr(made, "temperal_downsample"):
        return 2 ** sum(made.temperal_downsample), 2 ** len(made.temperal_downsample)
    space = getattr(made, "spatial_compression_ratio", None) or 2 ** (len(made.config.block_out_channels) - 1)
    time = getattr(made, "temporal_compression_ratio", None) or made.config.get("temporal_compression_ratio") or 1
    return time, space
