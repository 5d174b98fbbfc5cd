"""The parts of `benchmarks.quality`: what each measures of the studio's pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.environment import describe
from benchmarks.features import CHOICES, ChosenFeature
from benchmarks.quality_studio import COUNT, GRID, MAIN, SEARCHED, WARMUP, Key, Studio, methods
from plugin.building.judge import OFF, psnr
from plugin.config import ModelConfig
from plugin.denoising.events import Pixels
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.denoising.transformer import DenoisingRun, StepObserver
from plugin.engines import make_engine
from plugin.engines.base import Engine
from plugin.families.base import BlockInputs, Family
from plugin.request import GenerationRequest
from taylorseer import COORDINATES, CacheConfig, CacheSession, StepKind, even_steps
from taylorseer.learnt import LEARNT
from taylorseer.session import relative_distance

PLAIN = "fewer plain steps"
BUDGETS = (0.1, 0.05, 0.025)
ADAPTIVE = CacheConfig(interval=8, order=1, warmup_steps=WARMUP, cooldown_steps=1, min_interval=2, max_full_steps=25)
RANDOM_SCHEDULES = 80
PREDICTORS = (("taylor", 1), ("taylor", 2), ("hermite", 2), ("newton", 2), ("chebyshev", 2), ("chebyshev", 4))
FEW_STEPS = (4, 6, 8, 10, 12, 16, 20)


def measure_methods(studio: Studio) -> dict[str, Any]:
    """Every method by setting and number of full steps, and as few plain steps."""
    rows = list(_method_rows(studio))
    return {"perceptual": "1 - cosine of EfficientNet-Lite0 features", "rows": rows}


def measure_coordinates(studio: Studio) -> dict[str, Any]:
    """Every predictor along every coordinate, on evenly spread steps and on those that a search found."""
    schedules = {"even": " ".join(map(str, even_steps(MAIN.num_steps, COUNT))), "searched": SEARCHED}
    rows = []
    for predictor, order in track([*PREDICTORS, ("newton", 3)], "coordinates"):
        for schedule, steps in schedules.items():
            settings = CacheConfig(order=order, predictor=predictor, schedule=steps)
            by = {each: studio.judge(MAIN).psnr(replace(settings, coordinate=each)) for each in COORDINATES}
            rows.append({"predictor": predictor, "order": order, "schedule": schedule, "psnr": by})
    return {"setting": MAIN.name, "full_steps": COUNT, "rows": rows}


def measure_budgets(studio: Studio) -> dict[str, Any]:
    """Of several error budgets: each picture's full steps and distance, and whether other requests alter a schedule."""
    judge, rows = studio.judge(MAIN), []
    requests = studio.requests(MAIN)
    for budget in track(BUDGETS, "budgets"):
        settings = replace(ADAPTIVE, max_error=budget)
        alone = [
            generate(studio.host, replace(each, cache=settings), max_sequence_length=studio.config.max_sequence_length)
            for each in requests
        ]
        together = judge.generations(settings)
        rows.append(
            {
                "max_error": budget,
                "full_steps": [len(each.report.full_steps) for each in alone],
                "engine_calls": [each.report.engine_calls for each in alone],
                "psnr": [psnr(a.image, b) for a, b in zip(alone, judge.uncached, strict=True)],
                "same_schedule_in_company": all(
                    a.report.full_steps == b.report.full_steps for a, b in zip(alone, together, strict=True)
                ),
            }
        )
    return {"setting": MAIN.name, "settings": vars(ADAPTIVE), "rows": rows}


def measure_few_steps(studio: Studio) -> dict[str, Any]:
    """Runs of few steps, half of them full, and runs of as few plain steps: what forecasts gain there, and a preset
    that was learnt for that number of steps."""
    presets = [each for each in studio.config.presets.values() if each.learnt is not None]
    learnt = {each.learnt.runs[0].num_steps: each for each in presets if each.learnt is not None}
    rows = []
    for num_steps in track(FEW_STEPS, "few steps"):
        setting, count = replace(MAIN, num_steps=num_steps), num_steps // 2
        even = " ".join(map(str, even_steps(num_steps, count)))
        row = {"num_steps": num_steps, "full_steps": count, "plain": studio.plain(setting, count)["psnr"]}
        for predictor, order in (("taylor", 1), ("chebyshev", 2)):
            settings = CacheConfig(order=order, predictor=predictor, schedule=even)
            row[f"{predictor} {order}"] = studio.judge(setting).psnr(settings)
        if num_steps in learnt:
            assert len(learnt[num_steps].full_steps(num_steps)) == count
            row[LEARNT] = studio.judge(setting).psnr(learnt[num_steps])
        rows.append(row)
    return {"rows": rows}


def measure_steps(studio: Studio) -> dict[str, Any]:
    """How far the latents are from the uncached run's at each step, by method: the mean relative L2 distance."""
    requests = studio.requests(MAIN)
    uncached = [_latents(studio, each, OFF) for each in requests]
    by_method = {}
    for name, settings in track(methods(studio.config, MAIN.num_steps, COUNT).items(), "steps"):
        errors = [
            torch.linalg.vector_norm(_latents(studio, each, settings) - plain, dim=1)
            / torch.linalg.vector_norm(plain, dim=1)
            for each, plain in zip(requests, uncached, strict=True)
        ]
        by_method[name] = {
            "full_steps": settings.full_steps(MAIN.num_steps),
            "distance": torch.stack(errors).mean(dim=0).tolist(),
        }
    return {"setting": MAIN.name, "full_steps": COUNT, "methods": by_method}


def measure_ranking(studio: Studio) -> dict[str, Any]:
    """Whether the error of forecast features in a recorded uncached run predicts which schedule makes better pictures.

    Schedules are the even one with its steps moved at random by up to two. The PSNR of the cached pictures is compared
    with the mean relative L2 distance of the forecasts from the recorded features. The figure is their rank
    correlation, which is -1 if less error always makes a better picture.
    """
    recorder: list[Recorder] = []

    def recorded_by(family: Family) -> Engine:
        recorder.append(Recorder(make_engine(studio.config.engine, family)))
        return recorder[0]

    host = PipelineHost(load_pipeline(studio.config.source), recorded_by)
    requests = studio.requests(MAIN)
    runs = []
    for request in _off(requests):
        generate(host, request, max_sequence_length=studio.config.max_sequence_length)
        runs.append(recorder[0].taken())
    judge, chance = studio.judge(MAIN), np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    even = np.array(even_steps(MAIN.num_steps, COUNT))
    for _ in track(range(RANDOM_SCHEDULES), "ranking"):
        moved = np.clip(even + chance.integers(-2, 3, COUNT), 0, MAIN.num_steps - 1)
        steps = sorted({0, *moved.tolist()})
        settings = CacheConfig(order=2, predictor="chebyshev", schedule=" ".join(map(str, steps)))
        error = float(np.mean([_recorded_error(run, settings) for run in runs]))
        rows.append({"full_steps": steps, "feature_error": error, "psnr": judge.psnr(settings)})
    rows = [row for row in rows if len(row["full_steps"]) == COUNT]  # fewer full steps are worse for that alone
    errors = np.array([row["feature_error"] for row in rows])
    made = np.array([row["psnr"] for row in rows])
    return {
        "setting": MAIN.name,
        "schedules": len(rows),
        "rank_correlation": float(np.corrcoef(errors.argsort().argsort(), made.argsort().argsort())[0, 1]),
        "psnr_of_least_error": float(made[errors.argmin()]),
        "psnr_range": [float(made.min()), float(made.max())],
        "rows": rows,
    }


def measure_features(studio: Studio) -> dict[str, Any]:
    """What is forecast: PSNR and bytes by choice, order and schedule, on torch."""
    config = studio.config
    host = PipelineHost(load_pipeline(config.source))
    requests = studio.requests(MAIN)
    uncached = [generate(host, each, max_sequence_length=config.max_sequence_length) for each in _off(requests)]
    schedules = {"N5, warm-up 3": CacheConfig(interval=5, warmup_steps=WARMUP)}
    schedules["searched"] = CacheConfig(order=4, predictor="chebyshev", schedule=SEARCHED)
    rows = []
    for choice in track(CHOICES, "features"):
        for schedule, settings in schedules.items():
            for predictor, order in (("taylor", 1), ("taylor", 2), ("chebyshev", 2)):
                asked = replace(settings, predictor=predictor, order=order)
                made = [_with_feature(host, config, each, asked, choice) for each in requests]
                distance = [psnr(picture, plain.image) for (picture, _), plain in zip(made, uncached, strict=True)]
                row = {"feature": choice, "schedule": schedule, "predictor": predictor, "order": order}
                rows.append(row | {"psnr": float(np.mean(distance)), "bytes": made[0][1]})
    return {"setting": MAIN.name, "full_steps": COUNT, "engine": "torch", "rows": rows}


# name: (what measures it, the most pictures)
PARTS: dict[str, tuple[Callable[[Studio], dict[str, Any]], int]] = {
    "methods": (measure_methods, 128),
    "coordinates": (measure_coordinates, 32),
    "budgets": (measure_budgets, 128),
    "few_steps": (measure_few_steps, 64),
    "steps": (measure_steps, 16),
    "ranking": (measure_ranking, 8),
    "features": (measure_features, 8),
}


def measure_again(part: dict[str, Any], only: frozenset[str]) -> None:
    """Measures some methods of the part `methods` again, with as many pictures, and replaces their rows."""
    new = {_key(row): row for row in _method_rows(Studio(part["pictures"]), lambda key: key[2] in only)}
    kept = [row for row in part["rows"] if row["method"] not in only or _key(row) in new]
    part["rows"] = [new.get(_key(row), row) for row in kept]
    header = describe()
    part["measured_anew"] = {"methods": sorted(only), "date": header["date"], "commit": header["commit"]}


def measure_missing(part: dict[str, Any]) -> Iterator[None]:
    """Adds the rows that the part `methods` lacks, with as many pictures; yields after each."""
    known = {_key(row) for row in part["rows"]}
    for row in _method_rows(Studio(part["pictures"]), lambda key: key not in known):
        header = describe()
        part["rows"].append(row | {"date": header["date"], "commit": header["commit"]})
        yield


def _key(row: Mapping[str, Any]) -> Key:
    return row["setting"], row["full_steps"], row["method"]


def _method_rows(studio: Studio, wanted: Callable[[Key], bool] = lambda key: True) -> Iterator[dict[str, Any]]:
    for setting, count in track(GRID, "methods"):
        ways = {PLAIN: None} | methods(studio.config, setting.num_steps, count)
        for name, settings in ways.items():
            if not wanted((setting.name, count, name)):
                continue
            row = {"setting": setting.name, "full_steps": count, "method": name}
            if settings is None:
                yield row | studio.plain(setting, count)
                continue
            assert len(settings.full_steps(setting.num_steps)) == count
            yield row | studio.figures(setting, settings)


class Recorder:
    """An engine that keeps what it computed."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine
        self._kept: list[torch.Tensor] = []

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """As the engine's own."""
        features = self._engine.run(inputs, out)
        self._kept.append(features.clone())
        return features

    def taken(self) -> list[torch.Tensor]:
        """What was computed since the last time, in order."""
        taken, self._kept = self._kept, []
        return taken


def _recorded_error(run: Sequence[torch.Tensor], settings: CacheConfig) -> float:
    """The mean relative L2 distance of forecasts of recorded features (step, *feature) from those features."""
    session = CacheSession(settings, len(run))
    errors = []
    for step, features in enumerate(run):
        if session.kind(step, "recorded") is StepKind.FULL:
            session.write(step, "recorded", features)
        else:
            errors.append(relative_distance(session.forecast(step, "recorded"), features))
    return float(np.mean(errors))


def _off(requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    return [replace(each, cache=OFF) for each in requests]


def _with_feature(
    host: PipelineHost, config: ModelConfig, request: GenerationRequest, settings: CacheConfig, choice: str
) -> tuple[Pixels, int]:
    """The picture (frames, height, width, 3) with this feature forecast, and the bytes of its anchors."""
    pipe = host.pipeline_for(settings)
    pipe.__dict__["transformer"] = ChosenFeature(host.family, DenoisingRun(pipe, settings), choice)
    pixels = _call(host, pipe, request, config, "np")
    return (pixels * 255).round().astype(np.uint8), pipe.transformer.session.nbytes


def _latents(studio: Studio, request: GenerationRequest, settings: CacheConfig) -> torch.Tensor:
    """(steps + 1, latent) at the beginning of each step, flattened, and at the end."""
    seen: list[torch.Tensor] = []

    class Keep(StepObserver):
        def step_started(self, step: int, num_steps: int, latents: torch.Tensor) -> None:
            seen.append(latents.flatten().clone())

    pipe = studio.host.pipeline_for(settings, Keep())
    seen.append(_call(studio.host, pipe, request, studio.config, "latent").flatten())
    return torch.stack(seen).float()


def _call(host: PipelineHost, pipe: Any, request: GenerationRequest, config: ModelConfig, output_type: str) -> Any:
    return pipe(
        **host.family.call_arguments(request, config.max_sequence_length),
        num_inference_steps=request.num_inference_steps,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type=output_type,
    )[0]
