"""Requests with pictures: the cache off is bit for bit what plain diffusers makes of them, on it is the recursion."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from plugin.config import ModelConfig
from plugin.denoising.generation import Generation, generate
from plugin.denoising.host import PipelineHost
from plugin.families.base import Step
from plugin.request import GenerationRequest, parse_request
from plugin.serving.plan import Architecture, architecture_of, architecture_of_pipe, axis_sizes, plan_request
from taylorseer import CacheConfig, full_steps
from tests.support.engines import RecordingEngine
from tests.support.recursion import Recursion
from tests.support.tiny.pictures import CASES as WRITTEN_CASES
from tests.support.tiny.pictures import PictureCase, left_half, picture, plain
from tests.support.tiny.pictures_declared import DECLARED_CASES

CASES = {**WRITTEN_CASES, **DECLARED_CASES}
STEPS, SEED = 7, 3
# As wide as high, wide and high; each is a multiple of 32, and none has the tokens of another.
SIZES = ((32, 32), (96, 32), (32, 64))
ON = {"cache_interval": 3, "cache_order": 1, "cache_warmup_steps": 2}


class Loaded:
    """A tiny pipeline, hosted, and its settings. Widths and heights are of the case's scale."""

    def __init__(self, case: PictureCase, folder: Path) -> None:
        self.case = case
        self.pipe = case.make(folder)
        self.host = PipelineHost(self.pipe)
        self.config = ModelConfig.from_parameters({"pipeline": "hub/id", **case.parameters}, Path())
        self.architecture: Architecture = architecture_of_pipe(self.pipe)

    def pictures(self, width: int, height: int) -> list[Image.Image]:
        scale = self.case.scale
        return [picture(width * scale, height * scale, seed) for seed in range(self.case.pictures)]

    def mask(self, width: int, height: int) -> Image.Image:
        return left_half(width * self.case.scale, height * self.case.scale)

    def request(self, width: int, height: int, strength: float | None, /, **fields: Any) -> GenerationRequest:
        given: dict[str, Any] = {
            "prompt": b"a red apple",
            "seed": SEED,
            "num_inference_steps": STEPS,
            "strength": strength,
            "input_image": [png(each) for each in self.pictures(width, height)],
            "mask_image": [png(self.mask(width, height))] if self.case.mask else None,
            "num_frames": self.case.num_frames,
            **fields,
        }
        config = self.config
        return parse_request(given, config.defaults, config.limits, 0, config.presets, self.architecture.tasks)

    def generate(self, request: GenerationRequest) -> Generation:
        return generate(self.host, request, max_sequence_length=self.config.max_sequence_length)

    def plain(self, width: int, height: int, strength: float | None, **more: Any) -> Any:
        """What diffusers returns for the same request, called as its documentation has it."""
        case, defaults = self.case, self.config.defaults
        arguments = {
            **case.arguments(self.pictures(width, height)),
            "prompt": "a red apple",
            "guidance_scale": defaults.guidance_scale,
            "height": height * case.scale,
            "width": width * case.scale,
            "num_inference_steps": STEPS,
            "max_sequence_length": self.config.max_sequence_length,
            "generator": torch.Generator().manual_seed(SEED),
            "output_type": "np",
        }
        if case.mask:
            arguments["mask_image"] = self.mask(width, height)
        if strength is not None:
            arguments["strength"] = strength
        if case.num_frames > 1 and "VideoToVideo" not in case.pipeline:
            arguments["num_frames"] = case.num_frames
        if "Kontext" in case.pipeline:
            arguments["max_area"] = height * width
        if "Qwen" in case.pipeline:  # its guidance has another name, and needs a negative prompt
            arguments |= {"true_cfg_scale": arguments.pop("guidance_scale"), "negative_prompt": " "}
        return plain(self.pipe, case.pipeline)(**{**arguments, **more})[0]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def levels(pixels: Any) -> np.ndarray:
    """(frames, height, width, 3) uint8 of pixels from 0 to 1, with or without a batch axis of 1 before."""
    pixels = np.asarray(pixels)
    return (pixels.reshape(-1, *pixels.shape[-3:]) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def made() -> dict[str, Loaded]:
    return {}


@pytest.fixture
def loaded(
    made: dict[str, Loaded], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Loaded]:
    """Gives a case's pipeline, shared by the tests, and patches what it needs patched until the test ends."""

    def get(name: str) -> Loaded:
        CASES[name].patch(monkeypatch)
        if name not in made:
            made[name] = Loaded(CASES[name], tmp_path_factory.mktemp("tiny"))
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_the_cache_off_is_bit_for_bit_plain_diffusers_at_three_sizes_and_strengths(loaded, name):
    model = loaded(name)
    for (width, height), strength in itertools.product(SIZES, model.case.strengths):
        result = model.generate(model.request(width, height, strength, cache_interval=1))
        expected = levels(model.plain(width, height, strength))
        assert result.image.shape == expected.shape
        assert np.array_equal(result.image, expected), (width, height, strength)
        assert result.image.std() > 1, "random weights give noise, not one grey"


@pytest.mark.parametrize("name", CASES)
def test_the_cache_on_has_the_steps_of_the_shortened_run_and_the_bytes_of_the_plan(loaded, name):
    model = loaded(name)
    for strength in model.case.strengths:
        request = model.request(64, 32, strength, num_inference_steps=10, **ON)
        planned = plan_request(model.config, model.architecture, request)
        report = model.generate(request).report
        steps = 10 if strength is None else steps_of(model, strength, 10)
        assert report.num_steps == planned.num_steps == steps
        assert tuple(report.full_steps) == planned.full_steps
        experts = model.architecture.experts
        takeover = {experts.takeover(10)} if experts else set()  # Wan2.2's second expert begins with a full step
        assert set(report.full_steps) - takeover == set(full_steps(steps, 3, 2)) - takeover
        if model.host.family.rows(0, 1):  # the text's tokens are held too, and planned at their longest
            assert report.cache_bytes <= planned.cache_bytes
        else:
            assert report.cache_bytes == planned.cache_bytes
        assert report.engine_calls == model.case.calls * len(report.full_steps)


def steps_of(model: Loaded, strength: float, steps: int) -> int:
    """How many steps diffusers' own pipeline runs, counted at the end of each."""
    seen: list[int] = []

    def count(_: Any, step: int, *__: Any) -> dict[str, Any]:
        seen.append(step)
        return {}

    model.plain(64, 32, strength, num_inference_steps=steps, callback_on_step_end=count)
    return len(seen)


@pytest.mark.parametrize("name", ["flux image to image", "wan video to video"])
def test_every_strength_has_as_many_steps_as_diffusers_runs(loaded, name):
    """The two ways in which diffusers' pipelines round."""
    model = loaded(name)
    task = model.request(32, 32, 1.0).task
    for strength in (0.1, 0.25, 0.33, 0.5, 0.55, 0.66, 0.75, 0.9, 0.99):
        assert steps_of(model, strength, 11) == task.steps(11, strength), strength


@pytest.mark.parametrize("name", CASES)
def test_batches_are_bit_for_bit_too(loaded, name):
    """Two results of one call, in process; some pipelines of diffusers cannot make two, and then ours says the same."""
    model, strength = loaded(name), CASES[name].strengths[0]
    served = copy.copy(model)
    served.pipe = model.host.pipeline_for(
        CacheConfig(interval=1), pipeline_class=getattr(diffusers, model.case.pipeline)
    )
    results = [both(each, strength) for each in (model, served)]
    if "flux" in name:
        assert len(results[0]) == 2
    assert all(np.array_equal(*pair) for pair in zip(*results, strict=True))


def both(model: Loaded, strength: float | None) -> Any:
    count = "num_videos_per_prompt" if model.case.num_frames > 1 else "num_images_per_prompt"
    try:
        return model.plain(64, 32, strength, **{count: 2})
    except RuntimeError as error:
        return [np.array(str(error))]


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("wan2.2 image")])
def test_the_forecast_is_the_recursion(loaded, name):
    """What a forecast step puts in place of the blocks' output, against the recursion in float64: within float32's
    rounding of a sum of features. (Where two experts share a run, test_wan.py has it.)"""
    model, strength = loaded(name), CASES[name].strengths[-1]
    family, features = model.host.family, []
    forward = family.forward

    def recording(inputs: Any, constants: Any, step: Step) -> Any:
        def recorded(embed: Any) -> torch.Tensor:
            feature = step.features(embed)
            features.append(feature.double())
            return feature

        return forward(inputs, constants, replace(step, features=recorded))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "forward", recording)
        report = model.generate(model.request(64, 32, strength, **ON)).report
    calls = model.case.calls
    assert len(features) == calls * report.num_steps
    for branch in range(calls):
        recursion = Recursion(order=1, warmup_steps=2)
        for step, feature in enumerate(features[branch::calls]):
            if step in report.full_steps:
                recursion.full(step, feature)
            else:
                error = (recursion.forecast(step) - feature).abs().max()
                assert error <= 1e-5 * feature.abs().max(), (step, branch)


@pytest.mark.parametrize(
    "name",
    [
        "flux inpainting",
        "wan video to video",
        "wan first and last frame",
        "flux2 klein base",
        "qwen image to image",
        "qwen image edit plus, two pictures",
        *(name for name in CASES if "hunyuan" in name),
    ],
)
def test_requests_at_once_are_bit_for_bit_what_each_is_alone(loaded, name):
    """Autoencoders of videos keep frames on themselves while they encode, pipelines their schedules."""
    model, strengths = loaded(name), CASES[name].strengths
    requests = [
        model.request(*SIZES[number % 3], strengths[number % len(strengths)], seed=number, **(ON if number % 2 else {}))
        for number in range(6)
    ]
    alone = [model.generate(request).image for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = [result.image for result in pool.map(model.generate, requests)]
    assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if name != "wan2.2 of text and image"])
def test_the_sizes_that_engines_are_built_for_are_those_of_the_blocks_inputs(loaded, name):
    """With the tokens of pictures. (TI2V-5B's has a timestep for each token, and runs on torch alone.)"""
    model = loaded(name)
    first = next(iter(model.host.families))
    engine = RecordingEngine(model.host.engines[first])
    request = model.request(64, 32, None, num_inference_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model.host.engines, first, engine)
        model.generate(request)
    family = model.host.families[first]
    sizes = axis_sizes(family, model.config, model.architecture, request)
    for argument, tensor in engine.inputs[0].items():
        for axis, meaning in family.block_axes[argument].items():
            if family.text_varies and meaning.startswith(("text_tokens", "all_tokens")):
                assert tensor.shape[axis] <= sizes[meaning], (argument, meaning)
            elif meaning != "batch":
                assert tensor.shape[axis] == sizes[meaning], (argument, meaning)


@pytest.mark.parametrize(("name", "pictures", "side"), [("qwen image edit", 1, 1024), ("qwen image edit plus", 3, 384)])
def test_the_text_of_engines_is_as_long_as_a_prompt_and_what_its_encoder_sees(
    loaded, monkeypatch, name, pictures, side
):
    """Pictures as large as the pipelines give them to the encoder, whose processor has the published limits."""
    model = loaded(name)
    monkeypatch.setattr(model.pipe.processor.image_processor, "size", {"shortest_edge": 3136, "longest_edge": 12845056})
    seen = [picture(side, side, seed) for seed in range(pictures)]
    config = replace(model.config, max_sequence_length=None)
    request = model.request(32, 32, None, input_image=[png(each) for each in seen])
    sizes = axis_sizes(model.host.family, config, model.architecture, request)
    embeds, _ = model.pipe.encode_prompt("a red apple", seen if pictures > 1 else seen[0])
    assert embeds.shape[1] <= sizes["text_tokens"]


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["flux image to image", "flux kontext", "hunyuan video, first frame"])
def test_onnx_runtime_is_within_its_tolerance(loaded, name, engine_cache):
    """One level of 255, where rounding to levels tips over: float32 sums in another order."""
    expected = loaded(name)
    model = copy.copy(expected)
    model.host = PipelineHost(model.pipe, "onnxruntime", cache_dir=engine_cache)
    for width, height in SIZES[:2]:
        request = model.request(width, height, model.case.strengths[0], cache_interval=1)
        got, wanted = (each.generate(request).image.astype(int) for each in (model, expected))
        assert np.abs(got - wanted).max() <= 1
        assert np.abs(got - wanted).mean() < 0.01


def test_a_picture_that_is_stretched_is_reported_and_one_of_the_same_ratio_is_not(loaded):
    model = loaded("flux image to image")
    square = {"height": 32, "width": 32}
    stretched = model.generate(model.request(64, 32, 0.3, **square)).report.warnings
    assert [each for each in stretched if "stretched" in each] == [
        "input_image is 64 x 32 and was stretched to 32 x 32: crop it, or ask for a height and width of its ratio"
    ]
    scaled = model.generate(model.request(64, 32, 0.3, **{"height": 16, "width": 32})).report.warnings
    assert not [each for each in scaled if "stretched" in each]


def test_a_saved_pipeline_has_the_same_tasks_as_the_loaded_one(loaded, tmp_path):
    for name in CASES:
        model = loaded(name)
        folder = tmp_path / "".join(filter(str.isalnum, name))
        model.pipe.save_pretrained(folder)
        saved = architecture_of(str(folder))
        assert saved.tasks == model.architecture.tasks, name
        assert saved.picture_tokens == model.architecture.picture_tokens, name
