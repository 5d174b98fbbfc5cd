"""Other libraries' caches on a published architecture with random weights, to compare with `benchmarks.gpu_runs`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.peers import enable_cache_dit, enable_hook
from taylorseer import CacheConfig

PLAIN = "diffusers"


@dataclass
class _Counter:
    """Counts a run's transformer calls, and those that reach the last block's attention: of a full step all do."""

    calls: int = field(default=0, init=False)
    full_calls: int = field(default=0, init=False)

    def called(self, *_: object) -> None:
        self.calls += 1

    def attended(self, *_: object) -> None:
        self.full_calls += 1


def peer_cases(
    pipe: Any, run: Callable[[int], None], cache: CacheConfig, num_steps: int, turns: int, done: Mapping[str, Any]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name: plain diffusers, as few plain steps, diffusers' hook and cache-dit at the full steps.

    Args:
        pipe: the pipeline; each case leaves it as it was.
        run: makes one run of that number of steps with the pipeline and waits for the device.
        cache: TaylorSeer's settings: interval, order and warm-up.
        num_steps: of a run.
        turns: measured runs of each case.
        done: the cases that were measured before, by name; speed-ups are over plain diffusers.
    """
    full = len(cache.full_steps(num_steps))

    def measured(steps: int, enabled: Callable[[], Any]) -> dict[str, Any]:
        with enabled():
            full_steps = _full_steps(pipe, run, steps)
            seconds = [_seconds(run, steps) for _ in range(turns)]
        if steps == num_steps and enabled is not _as_it_is and full_steps == num_steps:
            raise RuntimeError("every step was full: it caches nothing of this transformer")
        figures: dict[str, Any] = {"run_s": median(seconds), "run_s_all": seconds, "full_steps": full_steps}
        plain_s = done.get(PLAIN, {}).get("run_s")
        return figures if plain_s is None else figures | {"speed_up": plain_s / figures["run_s"]}

    return {
        PLAIN: lambda: measured(num_steps, _as_it_is),
        f"{PLAIN}, {full} steps": lambda: measured(full, _as_it_is),
        f"{PLAIN}, its hook": lambda: measured(num_steps, lambda: _hooked(pipe, cache, lite=False)),
        f"{PLAIN}, its hook, lite": lambda: measured(num_steps, lambda: _hooked(pipe, cache, lite=True)),
        "cache-dit": lambda: measured(num_steps, lambda: _cached_by_cache_dit(pipe, cache, num_steps)),
    }


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _hooked(pipe: Any, cache: CacheConfig, *, lite: bool) -> Iterator[None]:
    enable_hook(pipe, cache, lite=lite)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@contextmanager
def _cached_by_cache_dit(pipe: Any, cache: CacheConfig, num_steps: int) -> Iterator[None]:
    import cache_dit

    own = pipe.__class__
    try:
        enable_cache_dit(pipe, cache, num_steps)
        yield
    finally:
        cache_dit.disable_cache(pipe)
        pipe.__class__ = own


def _full_steps(pipe: Any, run: Callable[[int], None], steps: int) -> int:
    """Full steps of a run that is not timed: it fills allocators and chooses kernels."""
    counter = _Counter()
    attention = [module for name, module in pipe.transformer.named_modules() if name.endswith("to_q")][-1]
    handles = [
        pipe.transformer.register_forward_hook(counter.called),
        attention.register_forward_hook(counter.attended),
    ]
    try:
        run(steps)
    finally:
        for handle in handles:
            handle.remove()
    return round(steps * counter.full_calls / counter.calls)


def _seconds(run: Callable[[int], None], steps: int) -> float:
    began = time.perf_counter()
    run(steps)
    return time.perf_counter() - began
