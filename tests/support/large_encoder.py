"""A tiny FLUX whose T5 encoder is large, so that memory can be measured, and what a process has had at most."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5EncoderModel

from tests.support.tiny.flux import tiny_flux


def flux_with_large_encoder(folder: Path, layers: int = 10) -> Any:
    """A tiny FLUX whose second text encoder has 20 MiB for each layer, all of which a prompt reads."""
    pipe = tiny_flux(folder)
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=81920, num_layers=layers, num_heads=4)
    pipe.text_encoder_2 = T5EncoderModel(config).eval()
    return pipe


def weights_bytes(module: torch.nn.Module) -> int:
    return sum(each.nbytes for each in {*module.parameters()})


class PeakMemory:
    """The most main memory that this process has had since the object was made, by the kernel's own count."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins again

    @property
    def nbytes(self) -> int:
        (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(kib) * 1024
