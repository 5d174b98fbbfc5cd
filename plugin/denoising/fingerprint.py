"""Which weights a transformer has, in a short text: forecast weights that were learnt for it hold for no other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from plugin.families.weights import plain_tensors
from plugin.repository import InvalidConfig
from taylorseer import CacheConfig

_SAMPLES = 16  # numbers of each tensor: adapters and training change nearly all of them


def fingerprint(transformers: Iterable[nn.Module]) -> str:
    """Of the denoising transformers of a pipeline: 32 hexadecimal digits of SHA-256.

    It covers the name and shape of every parameter and `_SAMPLES` numbers of each, rounded to bfloat16, so that weights
    that are loaded as float32 or bfloat16, on any device, have the same fingerprint. Loaded as float16 they are rounded
    otherwise, unless they were saved so. Quantised, they have another one: of the numbers that they are kept as.
    """
    digest = hashlib.sha256()
    for transformer in transformers:
        sampled = []
        for name, parameter in sorted(transformer.named_parameters()):
            for part, tensor in plain_tensors(parameter):
                digest.update(f"{name}{part} {tuple(tensor.shape)}\n".encode())
                flat = tensor.reshape(-1)
                at = torch.arange(_SAMPLES, device=flat.device) * (flat.numel() - 1) // (_SAMPLES - 1)
                sampled.append(flat[at].to(torch.bfloat16))
        if sampled:
            digest.update(torch.cat(sampled).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def check_presets(presets: Mapping[str, CacheConfig], own: str) -> None:
    """Checks that learnt presets were learnt for the transformers of this fingerprint.

    Raises:
        InvalidConfig: one of them was not.
    """
    for name, cache in presets.items():
        if cache.learnt is not None and cache.learnt.fingerprint != own:
            raise InvalidConfig(
                f"preset {name!r} has forecast weights that were learnt for another transformer (fingerprint "
                f"{cache.learnt.fingerprint}, this one has {own}): tune this model, or take the preset out of "
                "cache_presets.json"
            )
