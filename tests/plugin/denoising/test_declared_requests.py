"""Requests to models of declared families: what plain diffusers makes of the same call, and what was planned."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from plugin.config import ModelConfig
from plugin.denoising.events import NoEvents, Pixels
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.request import GenerationRequest, parse_request
from plugin.serving.plan import architecture_of_pipe, plan_request
from tests.support.tiny.declared import DECLARED

STEPS, SEED = 7, 3
GUIDANCE = 3.0
CONFIG = ModelConfig.from_parameters(
    {
        "pipeline": "hub/id",
        "size_multiple": "8",
        "min_size": "8",
        "max_frames": "17",
        "dtype": "float32",
    },
    Path(),
)


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DiffusionPipeline]:
    """The tiny pipeline of a family, shared: tests must not change it."""
    return cache(lambda family: DECLARED[family].make(tmp_path_factory.mktemp(family), torch.float32))


def text_of(name: str) -> int:
    """The tokens of text that the tiny encoders can take."""
    return DECLARED[name].arguments.get("max_sequence_length", 96)


def request_of(name: str, pipe: Any, **fields: Any) -> GenerationRequest:
    size = {key: value for key, value in DECLARED[name].sizes[0].items() if key in ("height", "width", "num_frames")}
    if "frames" in DECLARED[name].sizes[0]:
        size["num_frames"] = DECLARED[name].sizes[0]["frames"]
    given = {"prompt": b"a red apple", "seed": SEED, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **size}
    architecture = architecture_of_pipe(pipe)
    limits = replace(CONFIG.limits, frames_multiple=architecture.compression[0])
    return parse_request({**given, **fields}, CONFIG.defaults, limits, 0, CONFIG.presets, architecture.tasks)


def plain(name: str, pipe: Any) -> Any:
    """What diffusers makes of the same request, called as its documentation has it."""
    takes = inspect.signature(type(pipe).__call__).parameters
    scale = "true_cfg_scale" if "true_cfg_scale" in takes else "guidance_scale"
    arguments = {
        "prompt": "a red apple",
        scale: GUIDANCE,
        **DECLARED[name].sizes[0],
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(SEED),
        "output_type": "np",
        "max_sequence_length": text_of(name),
        "use_resolution_binning": False,
        "clean_caption": False,
    }
    if name in ("qwen_image", "easyanimate"):  # these leave guidance out where there is no negative prompt
        arguments["negative_prompt"] = {"qwen_image": " ", "easyanimate": ""}[name]
    return pipe(**{key: value for key, value in arguments.items() if key in takes})[0][0]


@pytest.mark.parametrize("name", DECLARED)
def test_the_cache_off_gives_the_pixels_of_plain_diffusers(pipeline_of, name):
    pipe = pipeline_of(name)
    result = generate(PipelineHost(pipe), request_of(name, pipe, cache_interval=1), max_sequence_length=text_of(name))
    if "guider" in pipe.components:
        pipe = with_guider(pipe)
    expected = (np.asarray(plain(name, pipe)) * 255).round().astype(np.uint8)
    assert np.array_equal(result.image, expected.reshape(-1, *expected.shape[-3:]))


def with_guider(pipe: Any) -> Any:
    """The same pipeline, whose guider has the scale of the request."""
    components = {
        key: each.new(guidance_scale=GUIDANCE) if key.endswith("guider") else each
        for key, each in pipe.components.items()
    }
    other = type(pipe)(**components)
    other.__dict__.update(
        {key: value for key, value in vars(pipe).items() if key.startswith(("tokenizer_", "vision_"))}
    )
    other.set_progress_bar_config(disable=True)
    return other


class Previews(NoEvents):
    """Keeps them."""

    def __init__(self) -> None:
        self.seen: list[Pixels] = []

    def progress(self, step: int, num_steps: int, preview: Pixels | None) -> None:
        if preview is not None:
            self.seen.append(preview)


@pytest.mark.parametrize("name", DECLARED)
def test_a_request_costs_what_was_planned_and_shows_previews(pipeline_of, name):
    pipe = pipeline_of(name)
    request = request_of(name, pipe, preview=True, cache_interval=3, cache_order=1, cache_warmup_steps=1)
    config = replace(CONFIG, max_sequence_length=text_of(name))
    plan, host, previews = plan_request(config, architecture_of_pipe(pipe), request), PipelineHost(pipe), Previews()
    result = generate(host, request, previews, max_sequence_length=text_of(name), preview_interval=2)
    assert (plan.num_steps, list(plan.full_steps)) == (result.report.num_steps, result.report.full_steps)
    calls = plan.branches if not host.family.batches_guidance else 1
    assert result.report.engine_calls == len(plan.full_steps) * calls
    held = result.report.cache_bytes
    if host.family.rows(0, 1):  # the text's tokens are held too, and planned at their longest
        assert held <= plan.cache_bytes
    else:
        assert held == plan.cache_bytes
    shown = 0 if name == "allegro" else 3  # whose autoencoder cannot decode a single frame
    assert [each.shape for each in previews.seen] == [result.image.shape[1:]] * shown
