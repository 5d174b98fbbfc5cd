"""What times are compared with runs as it is said to: the full steps of each peer, counted in its last block."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import FluxPipeline

from benchmarks.peers import cached_by_cache_dit, hook, plain
from plugin.cli import REPOSITORY
from plugin.config import ModelConfig
from taylorseer import CacheConfig

CONFIG = ModelConfig.from_folder(REPOSITORY / "emoji_stream")
CACHE = CacheConfig(interval=4, order=1, warmup_steps=2)
STEPS = 12  # of which 0, 1, 5 and 9 are full


def test_plain_diffusers_computes_every_step():
    assert plain(CONFIG, STEPS).full_steps == STEPS


@pytest.mark.parametrize("lite", [False, True])
def test_diffusers_own_hook_has_the_full_steps_of_the_schedule_and_one_more(lite):
    assert hook(CONFIG, CACHE, STEPS, lite=lite).full_steps - len(CACHE.full_steps(STEPS)) in (0, 1)


def test_cache_dit_has_the_very_full_steps_and_comes_near_the_uncached_picture():
    own = FluxPipeline.__call__
    peer = cached_by_cache_dit(CONFIG, CACHE, STEPS)
    assert peer.full_steps == len(CACHE.full_steps(STEPS))
    assert FluxPipeline.__call__ is own, "other pipelines are left alone"
    cached, uncached = (np.asarray(each.picture("red apple, 3d", 1)[0]) for each in (peer, plain(CONFIG, STEPS)))
    assert 0 < np.abs(cached - uncached).mean() < 0.1
