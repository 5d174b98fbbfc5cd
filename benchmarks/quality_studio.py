"""Settings and methods that `benchmarks.quality` compares, and the studio that makes their pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.environment import ROOT
from benchmarks.harness import MODEL, config_of
from clients.lines import read_lines
from plugin.building.distances import distances
from plugin.building.judge import Judge, offline_host
from plugin.config import ModelConfig
from plugin.denoising.events import Pixels
from plugin.request import GenerationRequest
from plugin.serving.plan import example_request
from taylorseer import CacheConfig, even_steps, full_steps
from taylorseer.learnt import LEARNT

PROMPTS = ROOT / "benchmarks" / "prompts.txt"
TUNING_PROMPTS = ROOT / "benchmarks" / "tuning_prompts.txt"  # nothing is measured by these
COUNTS = (6, 8, 10, 12, 15, 18)
COUNT = 12  # full steps in the contact sheet and in the parts that measure one number of them
WARMUP = 3
# 12 full steps that a search found for this model with the predictors below and no learnt weights
SEARCHED = "0 3 9 12 17 25 30 34 37 43 47 49 of 50"

# compared on evenly spread full steps
_OF_ORDER_2 = (
    ("TaylorSeer", "taylor"),
    ("HiCache", "hermite"),
    ("Newton", "newton"),
    ("FoCa", "foca"),
    ("Chebyshev", "chebyshev"),
    ("Spectrum, w 0.5", "spectrum"),
)


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
    """Settings with that number of full steps, by the method's name; methods that cannot have it are left out."""
    even = " ".join(map(str, even_steps(num_steps, count)))
    found: dict[str, CacheConfig] = {}
    if (paper := paper_settings(num_steps, count)) is not None:
        found |= {f"TaylorSeer, order {order}": replace(paper, order=order) for order in (1, 2, 4)}
    found["MagCache's weights (reuse), even"] = CacheConfig(order=0, predictor="reuse", schedule=even)
    for name, predictor in _OF_ORDER_2:
        found[f"{name}, order 2, even"] = CacheConfig(order=2, predictor=predictor, schedule=even)
    if f"tuned-{count}" in config.presets:
        found[LEARNT] = config.presets[f"tuned-{count}"]
    return found


def paper_settings(num_steps: int, count: int) -> CacheConfig | None:
    """The paper's schedule with exactly that number of full steps: an interval after its warm-up of 3, and up to two
    full last steps if the interval alone does not give the number; None if no interval does."""
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
        self.config = config_of(MODEL)
        self.host = offline_host(self.config)
        prompts = [text for _, text in read_lines(PROMPTS)]
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
        return _figures(lambda: judge.pictures(settings), judge)

    def plain(self, setting: Setting, count: int) -> dict[str, float]:
        """The same of uncached runs of fewer steps."""
        fewer = replace(setting, num_steps=count)  # a judge that is not kept: it makes the pictures, for the time
        return _figures(lambda: self._judge(fewer).uncached, self.judge(setting))


def _figures(make: Callable[[], list[Pixels]], judge: Judge) -> dict[str, float]:
    """Distances of the pictures that are made to the judge's uncached ones, and seconds of one."""
    began = time.perf_counter()
    made = make()
    seconds = (time.perf_counter() - began) / len(made)
    return distances([each[0] for each in made], [each[0] for each in judge.uncached]) | {"seconds": seconds}
