"""Transformers of published architectures with random weights, for what does not depend on what they have learnt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch
from torch import nn

from plugin.config import ModelConfig
from plugin.published import Architecture

MODELS = ("dit_xl_2_256", "wan2_1_t2v", "flux_dev", "hunyuan_video", "hidream_full")  # from the smallest to the largest


def random_transformer(architecture: Architecture, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The transformer of an architecture, its weights made where they are used: a large one does not fit twice.

    Args:
        architecture: its class and options.
        dtype: of all weights.
        device: where to make them.
    """
    with _default(dtype, device):
        return getattr(diffusers, architecture.transformer)(**architecture.options).eval()


def dtype_of(config: ModelConfig) -> torch.dtype:
    """The dtype that a model's transformer is served in."""
    return getattr(torch, dict(config.source.component_dtypes).get("transformer", config.source.dtype))


@contextmanager
def _default(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(dtype)
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
