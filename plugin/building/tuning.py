"""Chooses a model's full steps and predictor by how close its pictures come to the uncached ones, and saves them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from plugin.building.calibration import PROMPTS
from plugin.building.judge import Judge, offline_host, requests_of
from plugin.config import ModelConfig
from plugin.presets import presets_path, save_preset
from plugin.request import GenerationRequest
from taylorseer import CacheConfig, even_steps, full_steps

Steps = tuple[int, ...]

PREDICTORS = (("taylor", 1), ("taylor", 2), ("hermite", 2), ("newton", 2), ("chebyshev", 2), ("chebyshev", 4))
_WORTH_DB = 0.01  # a move that gains less is not made: it would fit these pictures and no others
_FIRST_SEED = 1000  # of the pictures
_MAX_NAME = 64  # bytes, as requests may choose
_MOVES = (2, 1)  # the distances that a full step is moved by, the longer first


@dataclass(frozen=True)
class TuneRequest:
    """What to tune.

    Attributes:
        full_steps: how many of them the preset will have.
        prompts: or class labels in digits; none for `PROMPTS` of calibration, or all class labels.
        pictures: how many the settings are chosen by, at least 1; as many others measure the result.
        fields: what else is asked for, as `parse_request` has it; None is the model's default.
    """

    full_steps: int
    prompts: tuple[str, ...]
    pictures: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class TunedModel:
    """A tuned preset.

    Attributes:
        cache: its settings.
        psnr: of the pictures that they were chosen by, in dB.
        even_psnr: of the same pictures, with the best predictor and as many full steps evenly spread.
        judged_psnr, judged_even_psnr: the same two of as many other pictures.
        path: of the file that the preset is saved in.
    """

    cache: CacheConfig
    psnr: float
    even_psnr: float
    judged_psnr: float
    judged_even_psnr: float
    path: Path


def tune_model(
    folder: Path, preset: str, request: TuneRequest, on_try: Callable[[int, float], None] = lambda tried, best: None
) -> TunedModel:
    """Tunes a model and saves the preset beside it.

    Args:
        folder: of the model, `<name>_stream`.
        preset: the name that requests will choose it by.
        request: what to tune.
        on_try: called after each setting with how many were tried and the best PSNR so far, in dB.

    Raises:
        InvalidConfig: the model's settings cannot be read.
        ValueError: a field out of its range, or a name that a preset cannot have.
        OSError: weights cannot be had, or the folder cannot be written.
    """
    config = ModelConfig.from_folder(folder)
    _check_name(preset)
    requests = _requests(config, request)
    path = presets_path(config.source.pipeline, folder)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} cannot be written, which is where the preset would be kept")
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    host = offline_host(config)
    judge, others = (
        Judge(host, some, config.max_sequence_length, workers=config.engine_lanes)
        for some in (requests[: request.pictures], requests[request.pictures :])
    )
    tuned = tune(judge.psnr, judge.num_steps, request.full_steps, on_try)
    even = replace(tuned.cache, schedule=_schedule(even_steps(judge.num_steps, request.full_steps), judge.num_steps))
    result = TunedModel(tuned.cache, tuned.psnr, tuned.even_psnr, others.psnr(tuned.cache), others.psnr(even), path)
    save_preset(path, preset, tuned.cache, _about(result, config, requests[0], request.pictures))
    return result


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        cache: the settings.
        psnr: their score, in dB.
        even_psnr: the score of as many full steps evenly spread, with the best predictor for them, in dB.
        tried: how many settings were tried.
    """

    cache: CacheConfig
    psnr: float
    even_psnr: float
    tried: int


def tune(
    score: Callable[[CacheConfig], float],
    num_steps: int,
    count: int,
    on_try: Callable[[int, float], None] = lambda tried, best: None,
) -> Tuned:
    """The predictor and the full steps with the highest score that a greedy search finds.

    The search starts with the best predictor for evenly spread steps. It moves one full step after another as long as
    that raises the score, then tries every predictor on the steps that it has found, and goes on if another is better.

    Scores are of whole runs. The error of the features at each forecast, taken from one recorded run, would be cheaper
    and would allow an exact search, but it does not rank schedules: errors on the way cancel or add up, and later full
    steps react to them (docs/quality.md has the figures).

    Args:
        score: of settings; higher is better.
        num_steps: steps of the run, at least 2.
        count: of full steps, from 2 to `num_steps` - 1.
        on_try: called after each setting with how many were tried and the best score so far.

    Raises:
        ValueError: a count out of its range.
    """
    if not 2 <= count < num_steps:
        raise ValueError(f"full_steps is {count}, must be from 2 to {num_steps - 1}, one less than the steps")
    known: dict[CacheConfig, float] = {}

    def scored(cache: CacheConfig) -> float:
        if cache not in known:
            known[cache] = score(cache)
            on_try(len(known), max(known.values()))
        return known[cache]

    def best_predictor(steps: Steps) -> CacheConfig:
        return max((_given(steps, num_steps, *each) for each in PREDICTORS), key=scored)

    start = best_predictor(even_steps(num_steps, count))
    even_psnr = scored(start)
    cache, steps = start, even_steps(num_steps, count)
    while True:
        predictor, order = cache.predictor, cache.order
        steps = search(partial(_score_of, scored, num_steps, predictor, order), steps)
        cache = _given(steps, num_steps, predictor, order)
        better = best_predictor(steps)
        if scored(better) - scored(cache) < _WORTH_DB:
            return Tuned(cache, scored(cache), even_psnr, len(known))
        cache = better


def _score_of(
    scored: Callable[[CacheConfig], float], num_steps: int, predictor: str, order: int, steps: Steps
) -> float:
    return scored(_given(steps, num_steps, predictor, order))


def search(score: Callable[[Steps], float], steps: Steps) -> Steps:
    """Moves one full step after another, the later ones first, as long as a move raises the score.

    The first and the last step stay full. A schedule without the last one can be a little better at the number of steps
    that it is chosen for, and is much worse in shorter runs, whose last step weighs more.

    Args:
        score: of full steps in ascending order; higher is better.
        steps: to begin with.

    Returns:
        Steps that no move of a single one by `_MOVES` improves by `_WORTH_DB`.
    """
    best = score(steps)
    moved = True
    while moved:
        moved = False
        for far in _MOVES:
            for index in range(len(steps) - 2, 0, -1):
                for by in (-far, far):
                    candidate = (*steps[:index], steps[index] + by, *steps[index + 1 :])
                    if any(a >= b for a, b in pairwise(candidate)):
                        continue
                    if (value := score(candidate)) > best + _WORTH_DB:
                        best, steps, moved = value, candidate, True
                        break
    return steps


def _given(steps: Steps, num_steps: int, predictor: str, order: int) -> CacheConfig:
    """Settings with these full steps. The interval, which a stretched schedule starts from, has about as many."""
    interval = next(n for n in range(2, num_steps + 1) if len(full_steps(num_steps, n)) <= max(4, len(steps)))
    return CacheConfig(interval=interval, order=order, predictor=predictor, schedule=_schedule(steps, num_steps))


def _schedule(steps: Steps, num_steps: int) -> str:
    return f"{' '.join(map(str, steps))} of {num_steps}"


def _check_name(preset: str) -> None:
    if preset == "default" or not preset.isprintable() or not 0 < len(preset.encode()) <= _MAX_NAME:
        raise ValueError(f"name is {preset!r}, must be 1 to {_MAX_NAME} printable bytes, not 'default'")


def _requests(config: ModelConfig, request: TuneRequest) -> list[GenerationRequest]:
    """For the pictures to choose by, and as many others; all are different."""
    own = PROMPTS if config.limits.takes_prompt else tuple(map(str, range(config.limits.num_classes)))
    return requests_of(config, request.prompts or own, 2 * request.pictures, _FIRST_SEED, request.fields)


def _about(result: TunedModel, config: ModelConfig, request: GenerationRequest, pictures: int) -> dict[str, Any]:
    """How the preset was found, for people."""
    return {
        "psnr": round(result.judged_psnr, 2),
        "psnr_evenly_spread": round(result.judged_even_psnr, 2),
        "pictures": pictures,
        "num_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "height": request.height,
        "width": request.width,
        "engine": config.engine,
        "date": datetime.now(UTC).date().isoformat(),
    }
