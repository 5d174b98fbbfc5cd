"""Presets where a run differs from what they were learnt at: settings, pictures, the scheduler's noise, adapters."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from benchmarks.harness import say
from benchmarks.quality_studio import Setting, Studio
from plugin.building.judge import Judge, psnr
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.serving.plan import architecture_of_pipe, example_request
from taylorseer import CacheConfig, even_steps

PICTURES = 16  # of each figure
COUNTS = (6, 8, 12)
LENGTHS = (20, 24, 28, 33, 38, 45, 60, 75, 100)
SIZES = ((48, 48), (64, 96), (96, 96))
GUIDANCE = (1.0, 3.5, 7.0)
SHIFTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
STRENGTHS = (0.8, 0.6, 0.4, 0.3)
BUDGETS = (0.1, 0.05)
ADAPTERS = (0.05, 0.2)  # the norm of a change of rank 4, over that of each matrix


def measure_elsewhere() -> dict[str, Any]:
    """PSNR of the presets to the uncached run, beside their steps with chebyshev and even steps with chebyshev."""
    studio = Studio(PICTURES)
    rows = [_row(what, judge, studio, count) for what, judge in _elsewhere(studio) for count in COUNTS]
    for scale in ADAPTERS:
        rows += _with_adapter(studio, scale)
    return {"pictures": PICTURES, "rows": rows}


def measure_budgets() -> dict[str, Any]:
    """An error budget on top of the presets, where they were learnt and where they are bad."""
    studio, rows = Studio(PICTURES), []
    for what, judge in _good_and_bad(studio):
        for count, budget in product(COUNTS, (None, *BUDGETS)):
            settings = replace(studio.config.presets[f"tuned-{count}"], max_error=budget, min_interval=2)
            made = judge.generations(settings)
            distances = [psnr(each.image, plain) for each, plain in zip(made, judge.uncached, strict=True)]
            full = float(np.mean([len(each.report.full_steps) for each in made]))
            rows.append({"what": what, "preset": f"tuned-{count}", "max_error": budget, "full_steps": full})
            rows[-1]["psnr"] = float(np.mean(distances))
            say(str(rows[-1]))
    return {"pictures": PICTURES, "rows": rows}


def _row(what: str, judge: Judge, studio: Studio, count: int) -> dict[str, Any]:
    preset = studio.config.presets[f"tuned-{count}"]
    even = " ".join(map(str, even_steps(judge.num_steps, count)))
    ways = {
        "learnt": preset,
        "its steps with chebyshev": preset.without_learnt(),
        "even, chebyshev": CacheConfig(order=2, predictor="chebyshev", schedule=even),
    }
    figures = {name: judge.psnr(way) for name, way in ways.items()}
    say(f"{what}, {count}: {figures}")
    return {"what": what, "full_steps": count, "num_steps": judge.num_steps} | figures


def _elsewhere(studio: Studio) -> Iterator[tuple[str, Judge]]:
    """What differs, and a judge of it."""
    for guidance in GUIDANCE:
        yield f"guidance {guidance:g}", studio.judge(Setting(guidance_scale=guidance))
    for height, width in SIZES:
        yield f"{height} x {width}", studio.judge(Setting(height=height, width=width))
    for length in LENGTHS:
        yield f"{length} steps", studio.judge(Setting(num_steps=length))
    yield _with_negative_prompt(studio)
    yield from _with_shifts(studio, SHIFTS)
    yield from _with_pictures(studio)


def _with_shifts(studio: Studio, shifts: Sequence[float]) -> Iterator[tuple[str, Judge]]:
    pipe = studio.host.pipe
    own = pipe.scheduler
    try:
        for shift in shifts:
            pipe.__dict__["scheduler"] = FlowMatchEulerDiscreteScheduler.from_config(own.config, shift=shift)
            yield f"shift {shift:g}", Judge(studio.host, studio.requests(Setting()), studio.config.max_sequence_length)
    finally:
        pipe.__dict__["scheduler"] = own


def _with_pictures(studio: Studio) -> Iterator[tuple[str, Judge]]:
    """Image to image from pictures of the model's own: each is made into the next one's subject."""
    tasks = architecture_of_pipe(studio.host.pipe).tasks
    files = [_png(frames[0]) for frames in studio.judge(Setting()).uncached]
    prompts = [each.prompt for each in studio.requests(Setting())]
    for strength in STRENGTHS:
        requests = [
            example_request(
                studio.config, tasks, prompt=prompt, seed=seed, input_image=[files[seed - 1]], strength=strength
            )
            for seed, prompt in enumerate(prompts)
        ]
        judge = Judge(studio.host, requests, studio.config.max_sequence_length)
        yield f"image to image at strength {strength:g}", judge


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _good_and_bad(studio: Studio) -> Iterator[tuple[str, Judge]]:
    yield "as learnt", studio.judge(Setting())
    yield _with_negative_prompt(studio)
    yield from _with_shifts(studio, SHIFTS[:1])


def _with_negative_prompt(studio: Studio) -> tuple[str, Judge]:
    requests = [replace(each, negative_prompt="blurry") for each in studio.requests(Setting())]
    return "a negative prompt", Judge(studio.host, requests, studio.config.max_sequence_length)


def _with_adapter(studio: Studio, scale: float) -> list[dict[str, Any]]:
    """The presets on weights that a random adapter of rank 4 was fused into."""
    pipe, chance = load_pipeline(studio.config.source), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            if weight.ndim == 2 and "blocks" in name and ("attn" in name or "proj" in name):
                up = torch.randn(weight.shape[0], 4, generator=chance)
                change = up @ torch.randn(4, weight.shape[1], generator=chance)
                weight.add_(change * (scale * weight.norm() / change.norm()))
    judge = Judge(PipelineHost(pipe), studio.requests(Setting()), studio.config.max_sequence_length)
    changed = np.mean([psnr(a, b) for a, b in zip(judge.uncached, studio.judge(Setting()).uncached, strict=True)])
    what = f"an adapter of {scale:g} (pictures change by {changed:.1f} dB)"
    return [_row(what, judge, studio, count) for count in COUNTS]
