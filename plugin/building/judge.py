"""Makes pictures with one cache setting after another and compares them with the uncached ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from plugin.building.from_text import task_from_text
from plugin.config import ModelConfig
from plugin.denoising.events import Pixels
from plugin.denoising.generation import Generation, generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.engine_specs import engine_spec
from plugin.engines.packer import PackSettings
from plugin.request import GenerationRequest
from plugin.serving.plan import example_request
from taylorseer import CacheConfig

OFF = CacheConfig(interval=1)
EQUAL_DB = 60.0  # the PSNR of equal pictures; rounding to bytes alone leaves 59


class Judge:
    """Makes the pictures of some requests with any cache settings, and compares them with the uncached ones.

    Args:
        host: the loaded model.
        requests: at least one, all with the same number of steps; their own cache settings are not used. One without a
            task is made from text.
        max_sequence_length: text tokens, or None for the pipeline's default.
        workers: requests made at once; their full steps meet at the host's packer.

    Attributes:
        num_steps: of each run.
        uncached: the pictures with the cache off, as `pictures` returns them.

    Raises:
        ValueError: the model makes nothing from text alone.
    """

    def __init__(
        self,
        host: PipelineHost,
        requests: Sequence[GenerationRequest],
        max_sequence_length: int | None = None,
        workers: int = 1,
    ) -> None:
        self._host = host
        self._requests = tuple(replace(each, task=each.task or task_from_text(host.pipe)) for each in requests)
        self._max_sequence_length = max_sequence_length
        self._workers = workers
        uncached = self.generations(OFF)
        self.num_steps = uncached[0].report.num_steps
        self.uncached = [each.image for each in uncached]

    def generations(self, cache: CacheConfig) -> list[Generation]:
        """The result of each request with these settings."""

        def made(request: GenerationRequest) -> Generation:
            asked = replace(request, cache=cache)
            return generate(self._host, asked, max_sequence_length=self._max_sequence_length)

        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(made, self._requests))

    def pictures(self, cache: CacheConfig) -> list[Pixels]:
        """(frames, height, width, 3) of each request."""
        return [each.image for each in self.generations(cache)]

    def psnr(self, cache: CacheConfig) -> float:
        """Mean over the requests of the PSNR in dB of the cached picture to the uncached one."""
        pairs = zip(self.pictures(cache), self.uncached, strict=True)
        return float(np.mean([psnr(cached, uncached) for cached, uncached in pairs]))


def psnr(picture: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one shape; at most `EQUAL_DB`, which equal ones have."""
    error = float(np.mean((picture.astype(np.float64) - reference) ** 2))
    return min(EQUAL_DB, 10 * math.log10(255**2 / error)) if error else EQUAL_DB


def offline_host(config: ModelConfig) -> PipelineHost:
    """The model, loaded outside a server with the settings that it has in one; it packs full steps.

    Raises:
        ValueError: its engine runs only in a server; or as `load_pipeline`.
    """
    if engine_spec(config.engine).needs_server:
        raise ValueError(f"engine is {config.engine}, must be one that runs outside a server")
    host = PipelineHost.from_config(load_pipeline(config.source), config)
    host.pack(PackSettings(lanes=config.engine_lanes))
    return host


def requests_of(
    config: ModelConfig, subjects: Sequence[str], count: int, first_seed: int, fields: Mapping[str, Any]
) -> list[GenerationRequest]:
    """Requests that take the subjects in turn, each with another seed.

    Args:
        config: the model's settings.
        subjects: prompts, or class labels in digits for a model that takes those.
        count: how many requests.
        first_seed: of the first request; the others count up from it.
        fields: what else is asked for, as `parse_request` has it; None is the model's default.

    Raises:
        ValueError: a subject that is no class label.
        InvalidRequest: a field that the model does not serve.
    """
    made = []
    for i in range(count):
        subject = subjects[i % len(subjects)]
        if config.limits.takes_prompt:
            chosen: dict[str, Any] = {"prompt": subject}
        elif subject.isdecimal():
            chosen = {"class_label": int(subject)}
        else:
            raise ValueError(f"prompts has {subject!r}, must be class labels: this model takes no prompt")
        made.append(example_request(config, **chosen, seed=first_seed + i, **fields))
    return made
