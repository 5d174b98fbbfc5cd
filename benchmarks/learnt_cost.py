"""What learnt weights cost: the full steps of a tuning, and the time of a picture beside a predictor's weights."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.harness import MODEL, config_of, take_turns, warm_up
from benchmarks.quality_studio import TUNING_PROMPTS
from clients.lines import read_lines
from plugin.building.judge import offline_host, requests_of
from plugin.building.tuning import Tuner, TuneRequest, TuningEvents
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.engines import make_engine
from plugin.engines.base import Engine
from plugin.families.base import BlockInputs, Family
from plugin.serving.plan import example_request
from taylorseer import CacheConfig

COUNTS = (8, 12)
PICTURES, TRIES = 8, 100
TURNS = 40


def measure_cost() -> dict[str, Any]:
    """How many rows of full steps a tuning of two presets computes, and which share of its time they take.

    A model whose full step takes t seconds a row needs about rows * t / share.
    """
    config = replace(config_of(MODEL), engine_lanes=1)  # seconds of calls side by side would count twice
    engines: list[Counted] = []

    def counted(family: Family) -> Engine:
        engines.append(Counted(make_engine(config.engine, family)))
        return engines[-1]

    prompts = [text for _, text in read_lines(TUNING_PROMPTS)]
    request = TuneRequest(COUNTS, tuple(prompts), PICTURES, {}, tries=TRIES)
    with tempfile.TemporaryDirectory() as temporary:
        begun = time.perf_counter()
        requests = requests_of(config, prompts, 2 * PICTURES, 1000, {})
        host = PipelineHost(load_pipeline(config.source), counted)
        tuner = Tuner(host, config, request, requests, Path(temporary) / "cache_presets.json", TuningEvents())
        for count in COUNTS:
            tuner.tune(f"tuned-{count}", count)
        seconds = time.perf_counter() - begun
    (engine,) = engines
    return {
        "pictures": PICTURES,
        "tries": TRIES,
        "full_steps": list(COUNTS),
        "rows": engine.rows,
        "seconds": seconds,
        "share_of_full_steps": engine.seconds / seconds,
    }


def measure_latency() -> dict[str, Any]:
    """Seconds of a picture with each preset, and with its steps and `chebyshev` of the same order, and of order 2."""
    config = config_of(MODEL)
    host = offline_host(config)
    request = example_request(config, prompt="rocket, fluent", seed=7)
    ways: dict[tuple[int, str], CacheConfig] = {}
    for count in COUNTS:
        learnt = config.presets[f"tuned-{count}"]
        ways |= {(count, "learnt"): learnt, (count, "chebyshev"): learnt.without_learnt()}
        ways[count, "chebyshev, order 2"] = replace(learnt.without_learnt(), order=2)
    calls = {
        name: partial(generate, host, replace(request, cache=cache), max_sequence_length=config.max_sequence_length)
        for name, cache in ways.items()
    }
    warm_up(calls, 3)
    seconds = {name: median(each) for name, each in take_turns(calls, TURNS, shown_as="latency").items()}
    rows = []
    for count in COUNTS:
        of_count = {f"{name}_s": seconds[of, name] for of, name in ways if of == count}
        ratio = of_count["learnt_s"] / of_count["chebyshev_s"]
        order = ways[count, "learnt"].order
        rows.append({"full_steps": count, "order": order, **of_count, "learnt_over_chebyshev": ratio})
    return {"turns": TURNS, "rows": rows}


class Counted:
    """An engine that counts its rows and the seconds that they take."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.rows = 0
        self.seconds = 0.0
        self._engine = engine

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """As the engine's own."""
        begun = time.perf_counter()
        features = self._engine.run(inputs, out)
        self.seconds += time.perf_counter() - begun
        self.rows += len(features)
        return features
