"""Chooses a model's full steps and predictor by what its pictures look like, and keeps them beside the model."""

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
from plugin.building.judge import Judge, offline_host
from plugin.config import ModelConfig
from plugin.presets import presets_path, save_preset
from plugin.request import GenerationRequest
from plugin.serving.plan import example_request
from taylorseer import CacheConfig, even_steps, full_steps

Steps = tuple[int, ...]

PREDICTORS = (("taylor", 1), ("taylor", 2), ("hermite", 2), ("newton", 2), ("chebyshev", 2), ("chebyshev", 4))
_WORTH_DB = 0.01  # a move that gains less is not taken: it would fit these pictures and no others
_FIRST_SEED = 1000  # of the pictures
_MAX_NAME = 64  # bytes, as requests may choose
_MOVES = (2, 1)  # steps that a full step is moved by, first the far ones


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        cache: the settings.
        psnr: of the pictures that they were chosen by, in dB.
        even_psnr: of the same pictures, best predictor, with as many full steps spread evenly.
        tried: settings that were tried.
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

    The predictor that does best on evenly spread steps is taken first, then one full step after another is moved as
    long as that helps, then every predictor is tried on the steps that were found.

    Scores are of whole runs. The error of features at each forecast, taken from one recorded run, would be cheaper and
    would allow an exact search, but it does not rank schedules: what the picture keeps is the sum of all errors on the
    way, which cancel or add up, and later full steps answer to them (docs/quality.md has the figures).

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
    """Moves one full step after another, the later first, as long as a move raises the score.

    The first and the last step stay full. Schedules that leave the last one out can be a little better at the number of
    steps that they are chosen for, and much worse in shorter runs, whose last step weighs more.

    Args:
        score: of the full steps, ascending; higher is better.
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
    """Settings of these full steps. The interval, which stretching begins from, is the one that has about as many."""
    interval = next(n for n in range(2, num_steps + 1) if len(full_steps(num_steps, n)) <= max(4, len(steps)))
    return CacheConfig(interval=interval, order=order, predictor=predictor, schedule=_schedule(steps, num_steps))


def _schedule(steps: Steps, num_steps: int) -> str:
    return f"{' '.join(map(str, steps))} of {num_steps}"


@dataclass(frozen=True)
class TuneRequest:
    """What to tune.

    Attributes:
        full_steps: how many.
        prompts: or class labels in digits; none for some of our own.
        pictures: to choose by, at least 1; as many others judge the result.
        fields: what is asked for besides subject and seed, as `parse_request` has it; None is the model's default.
    """

    full_steps: int
    prompts: tuple[str, ...]
    pictures: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class TunedModel:
    """A tuned preset, and where it is kept; PSNR in dB of the pictures that it was chosen by, and of others."""

    cache: CacheConfig
    psnr: float
    even_psnr: float
    judged_psnr: float
    judged_even_psnr: float
    path: Path


def tune_model(
    folder: Path, preset: str, request: TuneRequest, on_try: Callable[[int, float], None] = lambda tried, best: None
) -> TunedModel:
    """Tunes a model and saves what was found beside it.

    Args:
        folder: of the model, `<name>_stream`.
        preset: the name that requests will choose it by.
        request: what to tune.
        on_try: called after each setting with how many were tried and the best PSNR so far, in dB.

    Raises:
        InvalidConfig: the model's settings cannot be read.
        ValueError: a field out of its range, or a name that is taken.
        OSError: weights cannot be had, or the folder cannot be written.
    """
    config = ModelConfig.from_folder(folder)
    if preset == "default" or not preset.isprintable() or not 0 < len(preset.encode()) <= _MAX_NAME:
        raise ValueError(f"name is {preset!r}, must be 1 to {_MAX_NAME} printable bytes, not 'default'")
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
    num_steps = requests[0].num_inference_steps
    tuned = tune(judge.psnr, num_steps, request.full_steps, on_try)
    result = TunedModel(
        tuned.cache,
        tuned.psnr,
        tuned.even_psnr,
        others.psnr(tuned.cache),
        others.psnr(replace(tuned.cache, schedule=_schedule(even_steps(num_steps, request.full_steps), num_steps))),
        path,
    )
    about = {
        "psnr": round(result.judged_psnr, 2),
        "psnr_evenly_spread": round(result.judged_even_psnr, 2),
        "pictures": request.pictures,
        "num_steps": num_steps,
        "guidance_scale": requests[0].guidance_scale,
        "height": requests[0].height,
        "width": requests[0].width,
        "engine": config.engine,
        "date": datetime.now(UTC).date().isoformat(),
    }
    save_preset(path, preset, tuned.cache, about)
    return result


def _requests(config: ModelConfig, request: TuneRequest) -> list[GenerationRequest]:
    """Twice as many as pictures to choose by, all different: the prompts in turn, each time round with another seed."""
    takes_prompt = config.limits.takes_prompt
    subjects = request.prompts or (PROMPTS if takes_prompt else tuple(map(str, range(config.limits.num_classes))))
    made = []
    for i in range(2 * request.pictures):
        subject: Any = subjects[i % len(subjects)]
        if not takes_prompt:
            if not subject.isdecimal():
                raise ValueError(f"prompts has {subject!r}, must be class labels: this model takes no prompt")
            subject = int(subject)
        chosen = {"prompt" if takes_prompt else "class_label": subject}
        made.append(example_request(config, **chosen, seed=_FIRST_SEED + i, **request.fields))
    return made
