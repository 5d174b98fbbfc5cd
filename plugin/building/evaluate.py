"""Picture quality of a model's presets, and of as few plain steps, beside the uncached run.

PSNR, SSIM and the distance of EfficientNet-Lite0 features are to the uncached pictures of the same prompts and seeds,
made by the same engine. Needs the packages of the extra `bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from plugin.building.distances import distances
from plugin.building.environment import describe
from plugin.building.judge import OFF, Judge, offline_host, requests_of
from plugin.building.scores import ScoreMissing, clip_score, fid, image_reward, vbench
from plugin.config import ModelConfig
from plugin.denoising.events import Pixels
from plugin.denoising.media import encode
from plugin.request import GenerationRequest
from taylorseer import CacheConfig

SCORES = ("clip", "imagereward", "fid", "vbench")
UNCACHED = "uncached"


@dataclass(frozen=True)
class EvaluateRequest:
    """What to evaluate.

    Attributes:
        model: a name in `model_repository`, with or without its `_stream`.
        model_repository: a folder of models.
        prompts: at least one; class labels in digits for a model that takes those.
        pictures: at least 1. They take the prompts in turn, each picture with a seed of its own.
        presets: names of the model's presets; none for all of them.
        scores: names in `SCORES`.
        reference: for the score fid, a folder of real pictures.
        output: a folder for the pictures, with a folder in it for each way of making them.
        fields: what else is asked for, as `parse_request` has it; None is the model's default.
    """

    model: str
    model_repository: Path
    prompts: tuple[str, ...]
    pictures: int = 16
    presets: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    reference: Path | None = None
    output: Path = Path("out/evaluate")
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts has none, must have at least one")
        if self.pictures < 1:
            raise ValueError(f"pictures is {self.pictures}, must be at least 1")
        for name in self.scores:
            if name not in SCORES:
                raise ValueError(f"score is {name!r}, must be one of: {', '.join(SCORES)}")
        if "fid" in self.scores and self.reference is None:
            raise ValueError("reference is missing, must be a folder of real pictures for the score fid")


@dataclass(frozen=True)
class Way:
    """A way to make the pictures: cache settings, and another number of steps where it is not the request's."""

    name: str
    cache: CacheConfig
    num_steps: int | None = None


def evaluate(
    request: EvaluateRequest, on_progress: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """Makes and writes the pictures of the uncached run and of every other way, and compares them.

    Args:
        request: what to evaluate.
        on_progress: called before the first way and after each with how many are done, of how many.

    Returns:
        Where and when it was measured, the model, and "rows": for each way its name, full steps, distances and scores.
        In place of a score that cannot be had, a row says why.

    Raises:
        InvalidConfig: the model's settings cannot be read.
        ValueError: a field or a preset that the model does not have; the message names it.
        OSError: the weights cannot be had, or the output cannot be written.
    """
    config = ModelConfig.from_folder(request.model_repository / f"{request.model.removesuffix('_stream')}_stream")
    requests = requests_of(config, request.prompts, request.pictures, 0, request.fields)
    ways = _ways(config, request.presets, requests[0].num_inference_steps)
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    studio = _Studio(config, requests)
    rows: list[dict[str, Any]] = []
    for number, way in enumerate(ways):
        on_progress(number, len(ways))
        rows.append(_row(request, studio, way))
    on_progress(len(ways), len(ways))
    return describe() | {
        "model": request.model,
        "engine": config.engine,
        "pictures": len(requests),
        "num_steps": studio.judge.num_steps,
        "rows": rows,
    }


def table(result: Mapping[str, Any]) -> Table:
    """The rows of a result of `evaluate`, to print."""
    title = f"{result['model']}: {result['pictures']} pictures, {result['num_steps']} steps, engine {result['engine']}"
    names = list(result["rows"][0])
    printed = Table(*names, title=title)
    for row in result["rows"]:
        printed.add_row(*(f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names))
    return printed


class _Studio:
    """Makes the pictures of the requests in any way."""

    def __init__(self, config: ModelConfig, requests: Sequence[GenerationRequest]) -> None:
        self._config = config
        self._host = offline_host(config)
        self.requests = requests
        self.judge = self._judge(requests)

    def pictures(self, way: Way) -> list[Pixels]:
        """(frames, height, width, 3) of each request."""
        if way.num_steps is not None:
            return self._judge([replace(each, num_inference_steps=way.num_steps) for each in self.requests]).uncached
        return self.judge.uncached if way.cache == OFF else self.judge.pictures(way.cache)

    def _judge(self, requests: Sequence[GenerationRequest]) -> Judge:
        return Judge(self._host, requests, self._config.max_sequence_length, self._config.engine_lanes)


def _row(request: EvaluateRequest, studio: _Studio, way: Way) -> dict[str, Any]:
    made = studio.pictures(way)
    full_steps = way.num_steps or len(way.cache.full_steps(studio.judge.num_steps))
    row: dict[str, Any] = {"way": way.name, "full_steps": full_steps}
    row |= distances(_frames(made), _frames(studio.judge.uncached))
    files = _write(made, request.output / way.name.replace(" ", "_"), studio.requests[0].fps)
    return row | _scores(request, files)


def _ways(config: ModelConfig, presets: Sequence[str], num_steps: int) -> list[Way]:
    for name in presets:
        if name not in config.presets:
            raise ValueError(f"preset is {name!r}, must be one of: {', '.join(config.presets)}")
    cached = [Way(name, config.presets[name]) for name in presets or config.presets]
    counts = sorted({len(way.cache.full_steps(num_steps)) for way in cached})
    plain = [Way(f"{count} plain steps", OFF, count) for count in counts if count < num_steps]
    return [Way(UNCACHED, OFF), *plain, *cached]


def _frames(videos: Sequence[Pixels]) -> list[Pixels]:
    """(height, width, 3) of every frame of every picture or video."""
    return [frame for video in videos for frame in video]


def _write(made: Sequence[Pixels], folder: Path, fps: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, frames in enumerate(made):
        files.append(folder / (f"{number:04}.png" if len(frames) == 1 else f"{number:04}.mp4"))
        files[-1].write_bytes(encode(frames, fps))
    return files


def _scores(request: EvaluateRequest, files: Sequence[Path]) -> dict[str, Any]:
    """The scores that were asked for; in place of one that cannot be had, why."""
    subjects = [request.prompts[i % len(request.prompts)] for i in range(len(files))]
    folder, reference = files[0].parent, request.reference
    known: dict[str, Callable[[], Any]] = {
        "clip": lambda: clip_score(files, subjects),
        "imagereward": lambda: image_reward(files, subjects),
        "fid": lambda: fid(folder, reference or folder),  # never without: EvaluateRequest checks that
        "vbench": lambda: vbench(folder),
    }
    found: dict[str, Any] = {}
    for name in request.scores:
        try:
            found[name] = known[name]()
        except ScoreMissing as error:
            found[name] = f"not here: {error}"
    return found
