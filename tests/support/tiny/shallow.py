"""Tiny pipelines with one block of each kind, for compilers that take seconds for every block."""

from __future__ import annotations

from typing import Any

from torch import nn


def made_shallow(pipe: Any, transformer: str = "transformer") -> Any:
    """The same pipeline, whose transformer has only the first block of each of its lists of blocks.

    Args:
        pipe: a pipeline that nothing has been made from yet.
        transformer: the component's name.
    """
    module = getattr(pipe, transformer)
    lists = [name for name, child in module.named_children() if isinstance(child, nn.ModuleList)]
    blocks = [name for name in lists if name.endswith("blocks")]
    for name in blocks:
        setattr(module, name, getattr(module, name)[:1])
    counts = [name for name in ("num_layers", "num_single_layers") if name in module.config]
    module.register_to_config(**dict.fromkeys(counts, 1))
    if "llama_layers" in module.config:  # HiDream has a projection of a Llama state for each block, and T5's after them
        projections = module.caption_projection
        module.caption_projection = nn.ModuleList([*projections[: len(blocks)], projections[-1]])
        module.register_to_config(llama_layers=module.config.llama_layers[: len(blocks)])
    return pipe
