"""What times are compared with runs as it is said to: the full steps of each peer, counted in its last block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from benchmarks.gpu_peers import peer_cases
from benchmarks.peers import cached_by_cache_dit, hook, plain
from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline
from plugin.paths import REPOSITORY
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


def test_a_pipeline_is_as_it_was_after_each_peer():
    pipe = load_pipeline(CONFIG.source)
    own, made = type(pipe), []

    def run(num_steps: int) -> None:
        picture = pipe(
            "star",
            height=32,
            width=32,
            num_inference_steps=num_steps,
            max_sequence_length=16,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
        made.append(picture[0])

    run(STEPS)
    uncached = made[0]
    full_steps = {}
    for name, case in peer_cases(pipe, run, CACHE, STEPS, 1, {}).items():
        figures = case()
        full_steps[name] = figures["full_steps"]
        cached = made[-1]
        run(STEPS)
        assert np.array_equal(made[-1], uncached), name
        assert np.array_equal(cached, uncached) == (name == "diffusers"), "it does something while it is on"
        assert type(pipe) is own
    assert full_steps["diffusers, 4 steps"] == full_steps["cache-dit"] == 4
    assert full_steps["diffusers"] == STEPS


def test_a_peer_that_caches_nothing_is_told():
    pipe = load_pipeline(CONFIG.source)
    with pytest.raises(RuntimeError, match="every step was full: it caches nothing of this transformer"):
        peer_cases(
            pipe,
            lambda num_steps: pipe("star", height=32, width=32, num_inference_steps=num_steps, max_sequence_length=16),
            CacheConfig(interval=100, warmup_steps=STEPS),
            STEPS,
            1,
            {},
        )["diffusers, its hook"]()
