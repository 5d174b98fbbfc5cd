"""Finds a model's full steps and forecast weights by how close its runs come to the uncached ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from plugin.building.calibration import PROMPTS
from plugin.building.judge import Judge, offline_host, requests_of
from plugin.building.learning.annealing import Found, anneal
from plugin.building.learning.batch import Batch, RunRecord, Steps
from plugin.building.learning.gradients import refine
from plugin.building.learning.journal import Journal
from plugin.building.learning.rows import learnt_run
from plugin.building.learning.weighers import StepByStep, of_rows
from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.presets import presets_path, save_preset
from plugin.request import GenerationRequest
from plugin.serving.plan import architecture_of_pipe
from taylorseer import CacheConfig, LearntWeights, even_steps, full_steps
from taylorseer.learnt import LEARNT
from taylorseer.predictors import MAX_ORDER

_FIRST_SEED = 1000  # of the pictures
_HELD_OUT_SEEDS = 1_000_000  # what is added to the seeds for pictures by which gradients end
_MAX_NAME = 64  # bytes, as requests may choose


@dataclass(frozen=True)
class TuneRequest:
    """What to tune.

    Attributes:
        full_steps: how many of them each preset will have.
        prompts: or class labels in digits; none for `PROMPTS` of calibration, or all class labels.
        pictures: how many the presets are learnt from, at least 1; as many others measure the result.
        fields: what else is asked for, as `parse_request` has it; None is the model's default.
        order: O, 0 to 8: a forecast weighs at most the newest O+1 anchors.
        tries: how many schedules are compared for each preset, at least 0.
        lengths: other numbers of steps that weights are fitted for; None for the half and three quarters.
        rows: the most rows of one engine call; None for no limit.
        seed: of the search.
        refine: iterations of gradients after the fit, at most; see `plugin.building.learning.gradients`.
    """

    full_steps: tuple[int, ...]
    prompts: tuple[str, ...]
    pictures: int
    fields: Mapping[str, Any]
    order: int = 4
    tries: int = 200
    lengths: tuple[int, ...] | None = None
    rows: int | None = None
    seed: int = 0
    refine: int = 0


@dataclass(frozen=True)
class TunedModel:
    """A tuned preset.

    Attributes:
        name: of the preset.
        cache: its settings, with the learnt weights.
        psnr: of as many pictures as it was learnt from, but others, in dB.
        even_psnr: of those pictures with as many full steps evenly spread and the predictor chebyshev.
        path: of the file that the preset is saved in.
    """

    name: str
    cache: CacheConfig
    psnr: float
    even_psnr: float
    path: Path


class TuningEvents:
    """Follows a tuning; the methods do nothing here. What they raise ends it; presets that are saved stay."""

    def stage(self, text: str) -> None:
        """Called with what begins."""

    def tried(self, name: str, tries: int, tried: int, best: float) -> None:
        """Called after each schedule of a preset with the lowest score so far, in dB; see `Batch.distances`."""

    def tuned(self, model: TunedModel) -> None:
        """Called with each preset when it is saved."""


def tune_model(
    folder: Path, request: TuneRequest, names: Mapping[int, str] | None = None, events: TuningEvents | None = None
) -> list[TunedModel]:
    """Tunes a model and saves the presets beside it, each as soon as it is found.

    A tuning that was ended goes on where it was if it is asked for again.

    Args:
        folder: of the model, `<name>_stream`.
        request: what to tune.
        names: of the presets by the number of full steps; `tuned-<number>` where one is missing.
        events: follows it.

    Raises:
        InvalidConfig: the model's settings cannot be read.
        ValueError: a field out of its range, a name that a preset cannot have, or a pipeline that cannot be learnt.
        OSError: weights cannot be had, or the folder cannot be written.
    """
    events = events or TuningEvents()
    config = ModelConfig.from_folder(folder)
    names = {count: (names or {}).get(count, f"tuned-{count}") for count in request.full_steps}
    for name in names.values():
        _check_name(name)
    for field, least in (("pictures", 1), ("tries", 0), ("refine", 0)):
        if getattr(request, field) < least:
            raise ValueError(f"{field} is {getattr(request, field)}, must be at least {least}")
    requests = _requests(config, request)
    _check(request, requests[0].num_inference_steps)
    path = presets_path(config.source.pipeline, folder)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} cannot be written, which is where the presets would be kept")
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    events.stage("loading the model")
    tuner = Tuner(offline_host(replace(config, presets={})), config, request, requests, path, events)
    made = [tuner.tune(names[count], count) for count in sorted(request.full_steps)]  # one helps the next to begin
    tuner.done()
    return made


class Tuner:
    """One tuning of one loaded model.

    Args:
        host: the model.
        config: its settings.
        request: what to tune.
        requests: twice as many as `request.pictures`.
        path: of the presets.
        events: follows it.
    """

    def __init__(
        self,
        host: PipelineHost,
        config: ModelConfig,
        request: TuneRequest,
        requests: list[GenerationRequest],
        path: Path,
        events: TuningEvents,
    ) -> None:
        self._host, self._config, self._request, self._path, self._events = host, config, request, path, events
        self._requests = requests[: request.pictures]
        events.stage("making the uncached pictures")
        self._batches: dict[int, Batch] = {}  # by the number of steps
        self._found: list[Steps] = []
        self._differentiable: tuple[Batch, Batch] | None = None
        self._batch = self._batch_for(self._requests[0].num_inference_steps)
        self._others = Judge(
            host, requests[request.pictures :], config.max_sequence_length, workers=config.engine_lanes
        )
        self.num_steps = self._batch.num_steps
        experts = architecture_of_pipe(host.pipe).experts
        self._takeover = experts.takeover if experts else lambda num_steps: None
        settings = {"fingerprint": host.fingerprint, "order": request.order, "engine": config.engine}
        settings |= {"source": str(config.source), "max_sequence_length": config.max_sequence_length}
        asked = [str(replace(each, cache=CacheConfig())) for each in self._requests]
        self._journal = Journal(path.with_suffix(".tuning"), settings | {"requests": asked})

    def tune(self, name: str, count: int) -> TunedModel:
        """Finds and saves the preset of one number of full steps."""
        found = self._search(name, count)
        self._events.stage(f"{name}: fitting the weights")
        cache = self._cache(found.steps)
        spread = _schedule(even_steps(self.num_steps, count), self.num_steps)
        even = CacheConfig(order=2, predictor="chebyshev", schedule=spread)
        self._events.stage(f"{name}: measuring on other pictures")
        tuned = TunedModel(name, cache, self._others.psnr(cache), self._others.psnr(even), self._path)
        save_preset(self._path, name, cache, self._about(tuned, found))
        self._events.tuned(tuned)
        return tuned

    def done(self) -> None:
        """Removes what an ended tuning would have gone on with."""
        self._journal.remove()

    def _search(self, name: str, count: int) -> Found:
        weigher = StepByStep(self._request.order)
        records: dict[Steps, RunRecord] = {}  # of the schedule that the search is at, and of the latest one

        def score(steps: Steps, near: Steps) -> float:
            if (known := self._journal.get(steps)) is not None:
                return known
            here = records.get(near) or self._batch.run(near, weigher)
            there = here if steps == near else self._batch.run(steps, weigher, here)
            records.clear()
            records.update({near: here, steps: there})
            found = float(self._batch.distances(there).mean())
            self._journal.put(steps, found)
            return found

        takeover = self._takeover(self.num_steps)
        fixed = frozenset({0} if takeover is None else {0, takeover})
        starts = [_with(even_steps(self.num_steps, count), fixed)]
        starts += [_filled(steps, count, self.num_steps) for steps in self._found if len(steps) < count]
        found = anneal(
            score,
            min(starts, key=lambda steps: score(steps, steps)),
            self.num_steps,
            self._request.tries,
            fixed=fixed,
            seed=self._request.seed,
            on_try=partial(self._events.tried, name, self._request.tries),
        )
        self._found.append(found.steps)
        return found

    def _cache(self, steps: Steps) -> CacheConfig:
        """The settings with these full steps, and with weights for this number of steps and others."""
        given = _given(steps, self.num_steps, self._request.order)
        runs = []
        order = self._request.order
        for length in (self.num_steps, *_lengths(self._request, self.num_steps)):
            placed = given.full_steps(length)
            takeover = self._takeover(length)
            if length <= len(steps) or (takeover is not None and takeover not in placed):
                continue
            batch = self._batch_for(length)
            record = batch.run(placed, StepByStep(order))
            if self._request.refine and length == self.num_steps:
                record = self._refined(batch, record)
            runs.append(learnt_run(batch, record, order))
        learnt = LearntWeights(tuple(runs), self._host.fingerprint)
        return replace(given, predictor=LEARNT, order=learnt.order, learnt=learnt)

    def _refined(self, batch: Batch, record: RunRecord) -> RunRecord:
        """The same run with weights that gradients have improved, on the torch engine."""
        if self._differentiable is None:
            self._events.stage("loading the model on torch, for gradients")
            host = offline_host(replace(self._config, presets={}, engine="torch"))
            for family in host.families.values():
                family.transformer.requires_grad_(False)
            held_out = [replace(each, seed=each.seed + _HELD_OUT_SEEDS) for each in self._requests]
            length, rows = self._config.max_sequence_length, self._request.rows
            self._differentiable = (
                Batch(host, self._requests, length, rows),
                Batch(host, held_out, length, rows),
            )
        learn, held_out_batch = self._differentiable
        weights = refine(
            [learn],
            held_out_batch,
            record.full_steps,
            record.weights,
            self._request.refine,
            on_check=lambda at, error, _: self._events.stage(f"gradients: {at} iterations, {error:.2f} dB held out"),
        )
        return batch.run(record.full_steps, of_rows(weights)).with_weights(weights)

    def _batch_for(self, length: int) -> Batch:
        if length not in self._batches:
            requests = [replace(each, num_inference_steps=length) for each in self._requests]
            self._batches[length] = Batch(self._host, requests, self._config.max_sequence_length, self._request.rows)
        return self._batches[length]

    def _about(self, result: TunedModel, found: Found) -> dict[str, Any]:
        """How the preset was found, for people."""
        request = self._requests[0]
        return {
            "psnr": round(result.psnr, 2),
            "psnr_evenly_spread": round(result.even_psnr, 2),
            "distance_db": round(found.score, 2),
            "pictures": len(self._requests),
            "tries": self._request.tries,
            "seed": self._request.seed,
            "num_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "height": request.height,
            "width": request.width,
            "engine": self._config.engine,
            "date": datetime.now(UTC).date().isoformat(),
        }


def _check(request: TuneRequest, num_steps: int) -> None:
    for count in request.full_steps:
        if not 2 <= count < num_steps:
            raise ValueError(f"full_steps is {count}, must be from 2 to {num_steps - 1}, one less than the steps")
    for length in request.lengths or ():
        if length < 2 or length == num_steps:
            raise ValueError(f"lengths has {length}, must be other numbers of steps than {num_steps}, at least 2")
    if not 0 <= request.order <= MAX_ORDER:
        raise ValueError(f"order is {request.order}, must be from 0 to {MAX_ORDER}")


def _check_name(preset: str) -> None:
    if preset == "default" or not preset.isprintable() or not 0 < len(preset.encode()) <= _MAX_NAME:
        raise ValueError(f"name is {preset!r}, must be 1 to {_MAX_NAME} printable bytes, not 'default'")


def _requests(config: ModelConfig, request: TuneRequest) -> list[GenerationRequest]:
    """For the pictures to learn from, and as many others; all are different."""
    own = PROMPTS if config.limits.takes_prompt else tuple(map(str, range(config.limits.num_classes)))
    return requests_of(config, request.prompts or own, 2 * request.pictures, _FIRST_SEED, request.fields)


def _lengths(request: TuneRequest, num_steps: int) -> tuple[int, ...]:
    if request.lengths is not None:
        return tuple(dict.fromkeys(request.lengths))
    return tuple(each for each in dict.fromkeys((num_steps // 2, 3 * num_steps // 4)) if 2 <= each < num_steps)


def _with(steps: Steps, fixed: frozenset[int]) -> Steps:
    """As many full steps, with the fixed ones in place of those nearest to them."""
    free = [each for each in steps if each not in fixed]
    for each in fixed.difference(steps):
        free.remove(min(free, key=lambda step: abs(step - each)))
    return tuple(sorted({*free, *fixed}))


def _filled(steps: Steps, count: int, num_steps: int) -> Steps:
    """More full steps: one after another in the middle of the longest distance."""
    filled = [*steps]
    while len(filled) < count:
        begin, end = max(pairwise([*filled, num_steps]), key=lambda pair: pair[1] - pair[0])
        filled = sorted([*filled, (begin + end) // 2])
    return tuple(filled)


def _given(steps: Steps, num_steps: int, order: int) -> CacheConfig:
    """Settings with these full steps. The interval, which a stretched schedule starts from, has about as many."""
    interval = next(n for n in range(2, num_steps + 1) if len(full_steps(num_steps, n)) <= max(4, len(steps)))
    return CacheConfig(interval=interval, order=order, schedule=_schedule(steps, num_steps))


def _schedule(steps: Steps, num_steps: int) -> str:
    return f"{' '.join(map(str, steps))} of {num_steps}"
