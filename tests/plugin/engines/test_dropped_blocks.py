"""The torch blocks are in memory until an engine has its own weights, and no longer."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plugin.denoising.host import PipelineHost
from plugin.engines import onnxruntime_engine
from plugin.engines.base import drop_blocks
from plugin.families import family_of
from tests.support.tiny import FAMILIES
from tests.support.tiny.declared import DECLARED


class Watched:
    """The weights of a transformer's blocks, held by nothing here."""

    def __init__(self, transformer: nn.Module) -> None:
        stack = family_of(transformer).block_stack()
        self._weights = [weakref.ref(weight) for weight in {*stack.parameters()}]

    @property
    def nbytes(self) -> int:
        """Of those that are still in memory."""
        return sum(weight.nbytes for each in self._weights if (weight := each()) is not None)


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["flux", "hidream"])
def test_no_block_stays_in_memory_beside_an_engine(name, tmp_path, monkeypatch):
    """Neither where the engine's file is made in this process, whose libraries keep what they exported, nor later."""
    monkeypatch.delenv("TRITON_TAYLORSEER_EXPORTS")
    for process in ("makes the file", "finds it"):
        (tmp_path / process).mkdir()
        pipe = FAMILIES[name].make(tmp_path / process, torch.float32)
        blocks = Watched(pipe.transformer)
        assert blocks.nbytes > 400_000
        host = PipelineHost(pipe, "onnxruntime", cache_dir=tmp_path, release_blocks=True)
        gc.collect()
        assert blocks.nbytes == 0, process
        assert host.engines


def test_blocks_are_gone_before_an_engine_opens_its_file(make_flux, engine_cache, monkeypatch):
    """Else memory would have to hold both: of HiDream-I1 34 GB twice."""
    pipe = make_flux()
    blocks, opened = Watched(pipe.transformer), []

    class Opened(onnxruntime_engine.OnnxRuntimeEngine):
        def __init__(self, path: Path, threads: int | None, device: torch.device) -> None:
            opened.append(blocks.nbytes)
            super().__init__(path, threads, device)

    monkeypatch.setattr(onnxruntime_engine, "OnnxRuntimeEngine", Opened)
    PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache, engine_lanes=2, release_blocks=True)
    assert opened == [0, 0]  # the engine, and that of its lanes


def test_blocks_stay_where_nobody_drops_them(make_flux, engine_cache):
    pipe = make_flux()
    blocks = Watched(pipe.transformer)
    before = blocks.nbytes
    host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache)
    assert host.engines
    assert blocks.nbytes == before


@pytest.mark.parametrize("name", sorted(FAMILIES | DECLARED))
def test_every_family_lets_go_of_its_blocks(name, tmp_path):
    pipe: Any = (FAMILIES | DECLARED)[name].make(tmp_path, torch.float32)
    transformer = pipe.transformer if getattr(pipe, "transformer", None) is not None else pipe.transformer_2
    blocks, family = Watched(transformer), family_of(transformer)
    before = blocks.nbytes
    drop_blocks([family])
    # DiT's last layer reads its embedding from the first block.
    kept = sum(each.nbytes for each in family._embedding.parameters()) if name == "dit" else 0
    assert blocks.nbytes == kept < before / 2
