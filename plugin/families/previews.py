"""Latents in the form that autoencoders decode."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch


def unscaled(vae: Mapping[str, Any], latents: torch.Tensor) -> torch.Tensor:
    """Latents as the decoder takes them, from those that a transformer is given."""
    if vae.get("latents_mean") is None or vae.get("latents_std") is None:
        return latents / vae["scaling_factor"] + (vae.get("shift_factor") or 0)
    shape = (1, -1, *[1] * (latents.ndim - 2))
    mean, std = (torch.tensor(vae[name]).view(shape).to(latents) for name in ("latents_mean", "latents_std"))
    return latents * std / (vae.get("scaling_factor") or 1) + mean


def unpacked(pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Packed latents (1, I, C) as (1, C, [1,] H, W), without the tokens that follow those of the picture.

    Args:
        pipe: the pipeline.
        latents: each token holds 2 x 2 latents.
        height, width: of the picture, in pixels.
    """
    side = 2 * pipe.vae_scale_factor  # pixels of a token
    own = latents[:, : (height // side) * (width // side)]
    wanted = inspect.signature(pipe._unpack_latents).parameters
    more = {"vae_scale_factor": pipe.vae_scale_factor, "patch_size": 2}
    more = {name: value for name, value in more.items() if name in wanted}
    return pipe._unpack_latents(own, height=height, width=width, **more)


def unnormalised(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (1, 4 C, h, w) that a batch norm of the autoencoder normalised, as (1, C, 2 h, 2 w).

    As Flux2Pipeline and ErnieImagePipeline of diffusers 0.42.0 do it.
    """
    shape = (1, -1, 1, 1)
    deviation = torch.sqrt(vae.bn.running_var.view(shape) + vae.config.batch_norm_eps)
    scaled = latents * deviation.to(latents) + vae.bn.running_mean.view(shape).to(latents)
    batch, channels, height, width = scaled.shape
    parts = scaled.reshape(batch, channels // 4, 2, 2, height, width)
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * height, 2 * width)
