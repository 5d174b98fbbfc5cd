"""Tiny pipelines whose calls several processes can share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from plugin.engines.base import Engine
from plugin.engines.parallel.engine import ParallelEngine, Team
from plugin.families.base import Family
from tests.support.tiny import FAMILIES
from tests.support.tiny.declared import DECLARED
from tests.support.tiny.family import TinyFamily

SHARED: dict[str, TinyFamily] = {
    name: (FAMILIES | DECLARED)[name] for name in ("flux", "wan", "hunyuan_video", "qwen_image", "flux2")
}
# A size whose tokens divide by four, and one of an odd number of tokens, with an odd number of text tokens beside.
EVEN: dict[str, dict[str, Any]] = {
    "flux": {"height": 32, "width": 32},
    "wan": {"height": 32, "width": 32, "num_frames": 5},
    "hunyuan_video": {"height": 32, "width": 32, "num_frames": 5},
    "qwen_image": {"height": 64, "width": 64},
    "flux2": {"height": 64, "width": 64},
}
ODD: dict[str, dict[str, Any]] = {
    "flux": {"height": 20, "width": 36, "max_sequence_length": 15},
    "wan": {"height": 48, "width": 48, "num_frames": 17},
    "hunyuan_video": {"height": 48, "width": 48, "num_frames": 17, "max_sequence_length": 15},
    "qwen_image": {"height": 80, "width": 48, "prompt": "a red apple and a"},
    "flux2": {"height": 80, "width": 48, "max_sequence_length": 47},
}


def four_heads(name: str, folder: Path) -> Any:
    """A tiny pipeline with a transformer of four heads, so that four processes can share them."""
    pipe = SHARED[name].make(folder, torch.float32)
    torch.manual_seed(0)
    config = {**pipe.transformer.config, "num_attention_heads": 4}
    pipe.register_modules(transformer=type(pipe.transformer).from_config(config).eval().requires_grad_(False))
    return pipe


def engine_of(team: Team, name: str, family: Family) -> Engine:
    """A transformer's engine of a team."""
    return ParallelEngine(team, name, family)
