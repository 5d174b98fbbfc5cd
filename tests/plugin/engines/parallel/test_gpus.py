"""The same on GPUs, over NCCL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plugin.denoising.host import PipelineHost
from plugin.parallelism import Parallelism
from taylorseer import CacheConfig
from tests.support.parallel import EVEN, ODD, SHARED, four_heads
from tests.support.tiny import latents_of


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("parallelism", [Parallelism(2), Parallelism(1, 2)], ids=["tokens", "rows"])
@pytest.mark.parametrize("name", SHARED)
def test_two_gpus_equal_one(name: str, parallelism: Parallelism, tmp_path: Path) -> None:
    """Float32 without TF32, as on the CPU."""
    pipe = four_heads(name, tmp_path).to("cuda:0")
    kind = [*SHARED[name].guidance.values()][-1]
    calls = [{**SHARED[name].arguments, **kind.arguments, **size, "steps": 8} for size in (EVEN[name], ODD[name])]
    cache = CacheConfig(interval=3, order=1, warmup_steps=2)
    alone = PipelineHost(pipe)
    expected = [latents_of(alone.pipeline_for(cache), **call) for call in calls]
    host = PipelineHost(pipe, "parallel", parallelism=parallelism)
    try:
        for call, one in zip(calls, expected, strict=True):
            latents = latents_of(host.pipeline_for(cache), **call)
            assert (latents - one).abs().max() <= 1e-4 * one.abs().max()
    finally:
        host.close()
