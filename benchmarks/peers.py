"""Pictures by other libraries: plain diffusers, its own TaylorSeer hook, and cache-dit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import TaylorSeerCacheConfig

from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline
from taylorseer import CacheConfig


@dataclass(frozen=True)
class Peer:
    """One way to make a picture in process, with torch on all cores.

    Attributes:
        picture: makes the picture of a prompt and a seed.
        full_steps: steps at which all blocks run, counted.
    """

    picture: Callable[[str, int], object]
    full_steps: int


def plain(config: ModelConfig, num_steps: int) -> Peer:
    """diffusers as it is."""
    return _peer(config, num_steps, lambda pipe: None)


def hook(config: ModelConfig, cache: CacheConfig, num_steps: int, *, lite: bool = False) -> Peer:
    """diffusers' hook on the embedded model, as `enable_hook` has it."""
    return _peer(config, num_steps, lambda pipe: enable_hook(pipe, cache, lite=lite))


def enable_hook(pipe: Any, cache: CacheConfig, *, lite: bool = False) -> None:
    """diffusers' TaylorSeerCacheConfig, which caches the outputs of attention and feed-forward, or, lite, of the last
    layer.

    Its interval is the number of steps that it forecasts between full ones; its first full steps are its warm-up. With
    the same numbers it has one full step more than TaylorSeer's own schedule.
    """
    settings = TaylorSeerCacheConfig(
        cache_interval=cache.interval,
        disable_cache_before_step=cache.warmup_steps,
        max_order=cache.order,
        taylor_factors_dtype=pipe.transformer.dtype,
        use_lite_mode=lite,
    )
    pipe.transformer.enable_cache(settings)


def cached_by_cache_dit(config: ModelConfig, cache: CacheConfig, num_steps: int) -> Peer:
    """cache-dit on the embedded model, as `enable_cache_dit` has it."""
    return _peer(config, num_steps, lambda pipe: enable_cache_dit(pipe, cache, num_steps))


def enable_cache_dit(pipe: Any, cache: CacheConfig, num_steps: int) -> None:
    """cache-dit with its TaylorSeer calibrator, at the full steps of `cache`; the first block runs at every step."""
    import cache_dit  # only here, because only the extra `bench` installs it
    from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig

    full = set(cache.full_steps(num_steps))
    settings = DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=0,
        num_inference_steps=num_steps,
        steps_computation_mask=[int(step in full) for step in range(num_steps)],
        steps_computation_policy="static",
    )
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=cache.order)
    # It replaces __call__ of the pipeline's class, which other pipelines of this process have too.
    pipe.__class__ = type(type(pipe).__name__, (type(pipe),), {})
    cache_dit.enable_cache(pipe, cache_config=settings, calibrator_config=calibrator)


def _peer(config: ModelConfig, num_steps: int, enable: Callable[[Any], None]) -> Peer:
    pipe: Any = load_pipeline(config.source)
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    def picture(prompt: str, seed: int) -> object:
        with _all_cores():
            return pipe(
                prompt=prompt,
                height=config.defaults.height,
                width=config.defaults.width,
                guidance_scale=config.defaults.guidance_scale,
                num_inference_steps=num_steps,
                max_sequence_length=config.max_sequence_length,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            )

    # Of the last block's attention, which runs at full steps only, in every way of caching.
    counter = pipe.transformer.single_transformer_blocks[-1].attn.to_q.register_forward_hook(count)
    enable(pipe)
    picture("red apple, 3d", 0)
    counter.remove()
    return Peer(picture, counted)


@contextmanager
def _all_cores() -> Iterator[None]:
    """torch's own threads on all cores, as the engine has them that these compete with."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
