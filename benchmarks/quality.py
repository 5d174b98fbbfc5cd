"""How near to the uncached run each way of forecasting comes, at the same number of full steps.

    python -m benchmarks.quality                     every part: JSON, a table, plots and a contact sheet
    python -m benchmarks.quality --part budgets      one part; repeatable. The others keep what they measured before
    python -m benchmarks.quality --pictures 8        fewer pictures for each figure
    python -m benchmarks.quality --method tuned      of the part methods only this one, where a preset has changed
    python -m benchmarks.quality --missing           of the part methods what it has not yet; goes on where it was ended

The reference is the uncached run of the same engine with the same seeds. Beside every method stands the plain run of as
few steps as the method has full ones, which costs as much. Presets of `triton-taylorseer tune` were chosen by other
prompts (benchmarks/tuning_prompts.txt) and seeds. The perceptual distance is 1 - cosine of the features of
EfficientNet-Lite0, a classifier trained on ImageNet: it is not LPIPS and not FID.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.environment import RESULTS, ROOT, describe
from benchmarks.features import CHOICES, ChosenFeature
from plugin.building.distances import distances
from plugin.building.judge import OFF, Judge, offline_host, psnr
from plugin.building.tuning import PREDICTORS
from plugin.config import ModelConfig
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.denoising.run import Pixels
from plugin.denoising.transformer import DenoisingRun, StepObserver
from plugin.engines import make_engine
from plugin.engines.base import Engine
from plugin.families.base import BlockInputs, Family
from plugin.request import GenerationRequest
from plugin.serving.plan import example_request
from taylorseer import COORDINATES, CacheConfig, CacheSession, StepKind, even_steps, full_steps
from taylorseer.session import relative_distance

MODEL = "emoji"
PROMPTS = ROOT / "benchmarks" / "prompts.txt"
COUNTS = (8, 10, 12, 15, 18)
PLAIN = "fewer plain steps"
COUNT = 12  # of the contact sheet and of the parts that look at one number of full steps
WARMUP = 3
BUDGETS = (0.1, 0.05, 0.025)
ADAPTIVE = CacheConfig(interval=8, order=1, warmup_steps=WARMUP, cooldown_steps=1, min_interval=2, max_full_steps=25)
RANDOM_SCHEDULES = 80
FEW_STEPS = (4, 6, 8, 10, 12, 16, 20)


@dataclass(frozen=True)
class Setting:
    """What is asked for besides prompt and seed; None is the model's default."""

    num_steps: int = 50
    guidance_scale: float | None = 3.5
    height: int | None = None
    width: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        parts = [f"{self.num_steps} steps"]
        parts += [f"guidance {self.guidance_scale:g}"] if self.guidance_scale is not None else []
        parts += [f"{self.height} x {self.width}"] if self.height is not None else []
        return ", ".join(parts)


MAIN = Setting()
GRID = [(Setting(steps, guidance), count) for guidance in (3.5, 1.0, 7.0) for steps in (50, 28) for count in COUNTS]
GRID += [(Setting(height=height, width=width), COUNT) for height, width in ((48, 48), (64, 96))]
Key = tuple[str, int, str]  # of a row: the setting's name, full steps, method


def methods(config: ModelConfig, num_steps: int, count: int) -> dict[str, CacheConfig]:
    """Settings with so many full steps by the method's name; what cannot have so many is left out."""
    even = " ".join(map(str, even_steps(num_steps, count)))
    found: dict[str, CacheConfig] = {}
    if (paper := paper_settings(num_steps, count)) is not None:
        found |= {f"TaylorSeer, order {order}": replace(paper, order=order) for order in (1, 2, 4)}
    found["TaylorSeer, order 2, even"] = CacheConfig(order=2, schedule=even)
    found["HiCache, order 2, even"] = CacheConfig(order=2, predictor="hermite", schedule=even)
    found["Newton, order 2, even"] = CacheConfig(order=2, predictor="newton", schedule=even)
    found["Chebyshev, order 2, even"] = CacheConfig(order=2, predictor="chebyshev", schedule=even)
    if f"tuned-{count}" in config.presets:
        found["tuned"] = config.presets[f"tuned-{count}"]
    return found


def paper_settings(num_steps: int, count: int) -> CacheConfig | None:
    """The paper's schedule with exactly so many full steps: an interval after its warm-up of 3, with as few last steps
    full as make up the number; None where no interval does."""
    for cooldown in range(3):
        for interval in range(2, num_steps):
            if len(full_steps(num_steps, interval, WARMUP, cooldown)) == count:
                return CacheConfig(interval=interval, warmup_steps=WARMUP, cooldown_steps=cooldown)
    return None


class Studio:
    """Makes pictures of the model by setting and cache settings, and keeps the uncached ones.

    Args:
        pictures: of each figure.
    """

    def __init__(self, pictures: int) -> None:
        self.config = ModelConfig.from_folder(ROOT / "model_repository" / f"{MODEL}_stream")
        self.host = offline_host(self.config)
        prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
        self._subjects = [(prompts[i % len(prompts)], i) for i in range(pictures)]
        self.judge = cache(self._judge)

    def requests(self, setting: Setting) -> list[GenerationRequest]:
        """Of each subject."""
        options = vars(setting) | {"num_inference_steps": setting.num_steps}
        del options["num_steps"]
        return [example_request(self.config, prompt=prompt, seed=seed, **options) for prompt, seed in self._subjects]

    def _judge(self, setting: Setting) -> Judge:
        return Judge(self.host, self.requests(setting), self.config.max_sequence_length, self.config.engine_lanes)

    def figures(self, setting: Setting, settings: CacheConfig) -> dict[str, float]:
        """Distances to the uncached pictures, and seconds of one while `engine_lanes` of them are made at once."""
        judge = self.judge(setting)
        began = time.perf_counter()
        made = judge.pictures(settings)
        seconds = (time.perf_counter() - began) / len(made)
        return distances([each[0] for each in made], [each[0] for each in judge.uncached]) | {"seconds": seconds}

    def plain(self, setting: Setting, count: int) -> dict[str, float]:
        """The same of uncached runs of fewer steps."""
        began = time.perf_counter()
        made = self._judge(replace(setting, num_steps=count)).uncached  # made anew, for the time
        seconds = (time.perf_counter() - began) / len(made)
        uncached = self.judge(setting).uncached
        return distances([each[0] for each in made], [each[0] for each in uncached]) | {"seconds": seconds}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes JSON, Markdown, plots and contact sheet."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; default: all")
    parser.add_argument("--method", action="append", help="measure only these anew; repeatable; implies --part methods")
    parser.add_argument("--missing", action="store_true", help="of the part methods, what the results do not have yet")
    parser.add_argument("--pictures", type=int, default=128, help="of each figure; the parts that cost more take fewer")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    if arguments.pictures < 1:
        parser.error(f"--pictures is {arguments.pictures}, must be at least 1")
    from benchmarks.plots import draw_quality

    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "quality.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (arguments.method or arguments.missing) and "methods" not in result:
        parser.error(f"{path} has no part methods to go on with: --part methods measures it")
    if arguments.method:
        _measure_anew(result["methods"], frozenset(arguments.method))
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.missing:
        for _ in _measure_missing(result["methods"]):
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")  # each row at once
    for name in arguments.part or (() if arguments.method or arguments.missing else PARTS):
        measure, most = PARTS[name]
        pictures = min(most, arguments.pictures)
        result[name] = describe() | {"model": MODEL, "pictures": pictures} | measure(Studio(pictures))
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")  # each part at once
    text = markdown(result)
    (arguments.output / "quality.md").write_text(text, encoding="utf-8")
    draw_quality(result, arguments.output / "quality.png")
    contact_sheet(Studio(6)).save(arguments.output / "quality_sheet.png")
    Console().print(text, markup=False, highlight=False)
    Console().print(f"wrote {arguments.output}/quality.json, .md, .png and quality_sheet.png", highlight=False)


def _measure_anew(part: dict[str, Any], only: frozenset[str]) -> None:
    """Replaces the rows of some methods in a part that was measured before, with as many pictures."""
    new = {_key(row): row for row in _method_rows(Studio(part["pictures"]), lambda key: key[2] in only)}
    kept = [row for row in part["rows"] if row["method"] not in only or _key(row) in new]
    part["rows"] = [new.get(_key(row), row) for row in kept]
    header = describe()
    part["measured_anew"] = {"methods": sorted(only), "date": header["date"], "commit": header["commit"]}


def _measure_missing(part: dict[str, Any]) -> Iterator[None]:
    """Adds the rows of the grid that a part lacks, with as many pictures; yields after each."""
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


def measure_methods(studio: Studio) -> dict[str, Any]:
    """Every method by setting and number of full steps, and as few plain steps."""
    rows = list(_method_rows(studio))
    return {"perceptual": "1 - cosine of EfficientNet-Lite0 features", "rows": rows}


def measure_coordinates(studio: Studio) -> dict[str, Any]:
    """Every predictor along every coordinate, on evenly spread steps and on the tuned ones."""
    schedules = {"even": " ".join(map(str, even_steps(MAIN.num_steps, COUNT)))}
    if f"tuned-{COUNT}" in studio.config.presets:
        schedules["tuned"] = studio.config.presets[f"tuned-{COUNT}"].schedule
    rows = []
    for predictor, order in track([*PREDICTORS, ("newton", 3)], "coordinates"):
        for schedule, steps in schedules.items():
            settings = CacheConfig(order=order, predictor=predictor, schedule=steps)
            by = {each: studio.judge(MAIN).psnr(replace(settings, coordinate=each)) for each in COORDINATES}
            rows.append({"predictor": predictor, "order": order, "schedule": schedule, "psnr": by})
    return {"setting": MAIN.name, "full_steps": COUNT, "rows": rows}


def measure_budgets(studio: Studio) -> dict[str, Any]:
    """Of several error budgets: each picture's full steps and distance, and whether company changes a schedule."""
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
    """Runs of few steps with half of them full, and as few plain steps: what forecasts are worth there."""
    rows = []
    for num_steps in track(FEW_STEPS, "few steps"):
        setting, count = replace(MAIN, num_steps=num_steps), num_steps // 2
        even = " ".join(map(str, even_steps(num_steps, count)))
        row = {"num_steps": num_steps, "full_steps": count, "plain": studio.plain(setting, count)["psnr"]}
        for predictor, order in (("taylor", 1), ("chebyshev", 2)):
            settings = CacheConfig(order=order, predictor=predictor, schedule=even)
            row[f"{predictor} {order}"] = studio.judge(setting).psnr(settings)
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
    """Whether the error of forecast features in a recorded uncached run tells which schedule makes the better picture.

    Schedules are the even one with its steps moved at random by up to two. Beside the PSNR of the cached pictures
    stands the mean relative L2 distance of the forecasts from the recorded features; the figure is their rank
    correlation, which is -1 where less error is always a better picture.
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
    rows = [row for row in rows if len(row["full_steps"]) == COUNT]  # with fewer, all is worse for that alone
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


def measure_features(studio: Studio) -> dict[str, Any]:
    """What is forecast: PSNR and bytes by choice, order and schedule, on torch."""
    config = studio.config
    host = PipelineHost(load_pipeline(config.source))
    requests = studio.requests(MAIN)
    uncached = [generate(host, each, max_sequence_length=config.max_sequence_length) for each in _off(requests)]
    schedules = {"N5, warm-up 3": CacheConfig(interval=5, warmup_steps=WARMUP)}
    if f"tuned-{COUNT}" in config.presets:
        schedules["tuned"] = config.presets[f"tuned-{COUNT}"]
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


# name: (what measures it, most pictures)
PARTS: dict[str, tuple[Callable[[Studio], dict[str, Any]], int]] = {
    "methods": (measure_methods, 128),
    "coordinates": (measure_coordinates, 32),
    "budgets": (measure_budgets, 128),
    "few_steps": (measure_few_steps, 64),
    "steps": (measure_steps, 16),
    "ranking": (measure_ranking, 8),
    "features": (measure_features, 8),
}


def _off(requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    return [replace(each, cache=OFF) for each in requests]


def _with_feature(
    host: PipelineHost, config: ModelConfig, request: GenerationRequest, settings: CacheConfig, choice: str
) -> tuple[Pixels, int]:
    """The picture (frames, height, width, 3) with this feature forecast, and the bytes of its anchors."""
    pipe = host.pipeline_for(settings)
    pipe.__dict__["transformer"] = ChosenFeature(host.family, DenoisingRun(pipe.scheduler, settings), choice)
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


def contact_sheet(studio: Studio) -> Image.Image:
    """A row for each way, a column for each subject: uncached, as few plain steps, TaylorSeer, and tuned."""
    ways = methods(studio.config, MAIN.num_steps, COUNT)
    judge = studio.judge(MAIN)
    rows = [judge.uncached, studio.judge(replace(MAIN, num_steps=COUNT)).uncached]
    rows += [judge.pictures(ways[name]) for name in ("TaylorSeer, order 2", "tuned") if name in ways]
    sheet = np.concatenate([np.concatenate([each[0] for each in row], axis=1) for row in rows])
    return Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST)


def markdown(result: Mapping[str, Any]) -> str:
    """The parts that were measured, as Markdown tables."""
    return "\n".join(TABLES[name](result[name]) for name in TABLES if name in result)


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(each) for each in cells)} |\n"


def _head(cells: Sequence[str]) -> str:
    return _row(cells) + _row(["---"] * len(cells))


def _methods_table(part: Mapping[str, Any]) -> str:
    rows = part["rows"]
    columns = list(dict.fromkeys((row["setting"], row["full_steps"]) for row in rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    settings = list(dict.fromkeys(setting for setting, _ in columns))
    text = ""
    for setting in settings:
        counts = sorted(count for each, count in columns if each == setting)
        found = {(row["method"], row["full_steps"]): row for row in rows if row["setting"] == setting}
        text += (
            f"**{setting}**, {part['pictures']} pictures: PSNR in dB / SSIM / perceptual distance / seconds of one, "
        )
        text += "by full steps\n\n"
        text += _head(["method", *map(str, counts)])
        for name in names:
            cells = [_figures(found.get((name, count))) for count in counts]
            text += _row([name, *cells]) if any(cell != "-" for cell in cells) else ""
        text += "\n"
    return text


def _figures(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['psnr']:.1f} / {row['ssim']:.3f} / {row['perceptual']:.4f} / {row['seconds']:.2f}"


def _coordinates_table(part: Mapping[str, Any]) -> str:
    text = f"**Coordinates**, {part['setting']}, {part['full_steps']} full, {part['pictures']} pictures: PSNR in dB\n\n"
    text += _head(["predictor", "full steps", *COORDINATES])
    for row in part["rows"]:
        figures = [f"{row['psnr'][name]:.1f}" for name in COORDINATES]
        text += _row([f"{row['predictor']}, order {row['order']}", row["schedule"], *figures])
    return text


def _budgets_table(part: Mapping[str, Any]) -> str:
    text = f"**Error budgets**, {part['setting']}: 5th, 50th and 95th percentile over {part['pictures']} pictures\n\n"
    text += _head(["max_error", "full steps", "PSNR in dB", "same schedule in company"])
    for row in part["rows"]:
        spreads = [" / ".join(f"{each:.3g}" for each in np.percentile(row[key], (5, 50, 95))) for key in _SPREAD]
        text += _row([row["max_error"], *spreads, "yes" if row["same_schedule_in_company"] else "no"])
    return text


def _few_steps_table(part: Mapping[str, Any]) -> str:
    text = "**Few steps**, half of them full and evenly spread: PSNR in dB to the uncached run of as many steps, "
    text += f"{part['pictures']} pictures\n\n"
    names = [key for key in part["rows"][0] if key not in ("num_steps", "full_steps")]
    text += _head(["steps", "full", *names])
    for row in part["rows"]:
        text += _row([row["num_steps"], row["full_steps"], *(f"{row[name]:.1f}" for name in names)])
    return text


def _ranking_line(part: Mapping[str, Any]) -> str:
    low, high = part["psnr_range"]
    return (
        f"**Features or pictures**, {part['setting']}: of {part['schedules']} schedules of {COUNT} full steps near the "
        f"even one, pictures have {low:.1f} to {high:.1f} dB; the one with the least error of forecast features has "
        f"{part['psnr_of_least_error']:.1f}, and the rank correlation of that error with the PSNR is "
        f"{part['rank_correlation']:.2f}; {part['pictures']} pictures of each\n"
    )


def _features_table(part: Mapping[str, Any]) -> str:
    text = (
        f"**What is forecast**, {part['setting']}, {part['full_steps']} full, {part['pictures']} pictures on torch\n\n"
    )
    text += _head(["feature", "full steps", "predictor", "PSNR in dB", "KiB of anchors"])
    for row in part["rows"]:
        predictor = f"{row['predictor']}, order {row['order']}"
        text += _row([row["feature"], row["schedule"], predictor, f"{row['psnr']:.1f}", f"{row['bytes'] / 2**10:.0f}"])
    return text


_SPREAD = ("full_steps", "psnr")
TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "methods": _methods_table,
    "coordinates": _coordinates_table,
    "budgets": _budgets_table,
    "few_steps": _few_steps_table,
    "ranking": _ranking_line,
    "features": _features_table,
}


if __name__ == "__main__":
    main()
