"""Which weights a learnt preset belongs to, and what a report says of its runs."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from plugin.config import ModelConfig
from plugin.denoising.fingerprint import fingerprint
from plugin.denoising.generation import Generation, generate
from plugin.denoising.host import PipelineHost
from plugin.presets import save_preset
from plugin.repository import InvalidConfig
from plugin.request import parse_request
from plugin.serving.plan import architecture_of_pipe
from taylorseer import CacheConfig, LearntRun, LearntWeights
from tests.support.tiny.flux import shift_of_size
from tests.support.tiny.pictures import picture
from tests.support.tiny.wan import tiny_wan

STEPS, FULL = 12, (0, 3, 7, 11)
SCHEDULE = "0 3 7 11 of 12"


def learnt(weights: str, noise: float | None = None) -> CacheConfig:
    """A preset whose rows all repeat the newest anchor."""
    run = LearntRun(STEPS, FULL, ((1.0,),) * (STEPS - 1), noise)
    return CacheConfig(order=0, predictor="learnt", schedule=SCHEDULE, learnt=LearntWeights((run,), weights))


@pytest.fixture
def stack() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 3))


def test_the_same_weights_have_one_fingerprint_in_any_dtype(make_flux: Any) -> None:
    """bfloat16 keeps 8 bits of a number and float16 11, which a second rounding to 8 can round another way."""
    own = fingerprint([make_flux().transformer])
    assert len(own) == 32
    assert own == fingerprint([make_flux().transformer])
    assert own == fingerprint([make_flux(dtype=torch.bfloat16).transformer])
    assert own == fingerprint([make_flux().transformer.double()])


def test_weights_that_were_saved_as_float16_have_the_same_fingerprint_when_they_are_loaded_so(make_flux: Any) -> None:
    saved = make_flux(dtype=torch.float16).transformer
    own = fingerprint([saved])
    assert fingerprint([saved.float()]) == own


def changed_bias(stack: nn.Module) -> None:
    stack[2].bias.data[1] += 0.05


def fused_lora(stack: nn.Module) -> None:
    """A product of rank 1, a fiftieth of the matrix."""
    up, down = torch.randn(30, 1), torch.randn(1, 40)
    stack[0].weight.data += 0.02 * stack[0].weight.norm() * (up @ down) / (up @ down).norm()


def renamed(stack: nn.Module) -> None:
    stack.again = stack._modules.pop("2")


def reshaped(stack: nn.Module) -> None:
    stack[0].weight = nn.Parameter(stack[0].weight.data.reshape(40, 30))


@pytest.mark.parametrize("change", [changed_bias, fused_lora, renamed, reshaped])
def test_other_weights_have_another_fingerprint(stack: nn.Module, change: Callable[[nn.Module], None]) -> None:
    own = fingerprint([stack])
    change(stack)
    assert fingerprint([stack]) != own


def test_both_experts_and_their_order_count(tmp_path: Path) -> None:
    pipe = tiny_wan(tmp_path, boundary_ratio=0.9)
    first, second = pipe.transformer, pipe.transformer_2
    assert len({fingerprint(each) for each in ([first], [second], [first, second], [second, first])}) == 4


@pytest.mark.parametrize("numbers", [1, 5, 2**24 + 2, 2**25, 3072 * 12288])
def test_a_parameter_of_any_size_has_a_fingerprint(numbers: int) -> None:
    """Those of FLUX.1-dev are beyond what float32 counts to. All numbers of these share one place in memory."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16).expand(numbers), requires_grad=False)
    assert len(fingerprint([module])) == 32


def model(folder: Path, cache: CacheConfig) -> ModelConfig:
    save_preset(folder / "cache_presets.json", "mine", cache, {})
    parameters = {"pipeline": "hub/id", "engine": "torch", "size_multiple": "8", "min_size": "8", "dtype": "float32"}
    small = {"height": "32", "width": "32", "num_inference_steps": str(STEPS), "max_sequence_length": "16"}
    return ModelConfig.from_parameters(parameters | small, folder)


def test_a_host_takes_the_presets_of_its_own_weights_alone(flux: FluxPipeline, tmp_path: Path) -> None:
    own = fingerprint([flux.transformer])
    host = PipelineHost.from_config(flux, model(tmp_path, learnt(own)))
    assert host.fingerprint == own
    assert PipelineHost(flux).fingerprint == ""
    with pytest.raises(InvalidConfig) as caught:
        PipelineHost.from_config(flux, model(tmp_path, learnt("0123")))
    assert str(caught.value) == (
        "preset 'mine' has forecast weights that were learnt for another transformer (fingerprint 0123, this one has "
        f"{own}): tune this model, or take the preset out of cache_presets.json"
    )


def test_a_model_with_a_lora_refuses_the_presets_of_the_model_without(make_flux: Any, tmp_path: Path) -> None:
    pipe = make_flux()
    config = model(tmp_path, learnt(fingerprint([pipe.transformer])))
    pipe.transformer.single_transformer_blocks[1].proj_mlp.weight.data *= 1.02
    with pytest.raises(InvalidConfig, match="preset 'mine' has forecast weights that were learnt for another"):
        PipelineHost.from_config(pipe, config)


class Served:
    """A tiny FLUX with a preset of its own."""

    def __init__(self, pipe: FluxPipeline, folder: Path) -> None:
        self.config = model(folder, learnt(fingerprint([pipe.transformer])))
        self.host = PipelineHost.from_config(pipe, self.config)

    def generate(self, **fields: Any) -> Generation:
        tasks = architecture_of_pipe(self.host.pipe).tasks
        given = {"prompt": b"a red apple", "cache_preset": b"mine", **fields}
        config = self.config
        request = parse_request(given, config.defaults, config.limits, 0, config.presets, tasks)
        return generate(self.host, request, max_sequence_length=16)


@pytest.fixture(scope="module")
def served(make_flux: Any, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(make_flux(), tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def apple() -> bytes:
    file = io.BytesIO()
    picture(32, 32, 0).save(file, "PNG")
    return file.getvalue()


def test_runs_that_use_the_weights_have_no_warning(served: Served, apple: bytes) -> None:
    """Of other lengths too, and image-to-image, which runs the last steps of its schedule."""
    part = {"input_image": [apple], "strength": 0.5, "num_inference_steps": 24}
    for fields, steps in (({}, 12), ({"num_inference_steps": 20}, 20), (part, 12)):
        report = served.generate(**fields).report
        assert report.warnings == []
        assert report.cache_predictor == "learnt"
        assert report.num_steps == steps
        assert len(report.full_steps) == 4


def test_a_report_names_the_predictor_that_was_used(served: Served) -> None:
    for fields in ({"cache_interval": 1}, {"cache_predictor": b"newton"}):
        report = served.generate(**fields).report
        assert report.warnings == []
        assert report.cache_predictor == ("newton" if "cache_predictor" in fields else "learnt")


def test_a_picture_is_made_with_the_rows(served: Served) -> None:
    """All of them repeat the newest anchor, as the predictor reuse does."""
    made = served.generate()
    reused = served.generate(cache_predictor=b"reuse")
    assert made.report.full_steps == list(FULL)
    assert (made.image == reused.image).all()
    assert (made.image != served.generate(cache_predictor=b"newton", cache_order=2).image).any()


def test_a_run_with_as_few_steps_as_the_preset_has_full_ones_forecasts_nothing(served: Served) -> None:
    report = served.generate(num_inference_steps=3).report
    assert report.full_steps == [0, 1, 2]
    assert report.warnings == []


def test_short_runs_are_warned_of_unless_the_weights_were_learnt_for_them(make_flux: Any, tmp_path: Path) -> None:
    pipe = make_flux()
    run = LearntRun(8, (0, 4, 6, 7), ((1.0,),) * 7)
    short = LearntWeights((run,), fingerprint([pipe.transformer]))
    served = Served(pipe, tmp_path)
    served.config = replace(
        served.config,
        presets={"mine": CacheConfig(order=0, predictor="learnt", schedule="0 4 6 7 of 8", learnt=short)},
    )
    assert served.generate(num_inference_steps=8).report.warnings == []
    (warning,) = served.generate(num_inference_steps=7).report.warnings
    assert warning.startswith("num_inference_steps is 7: in runs of fewer than 10 steps")


@pytest.mark.parametrize(("ratio", "warned"), [(1.0, ""), (0.5, ""), (0.33, "0.33"), (2.0, ""), (2.5, "2.5")])
def test_noise_far_from_where_weights_were_learnt_is_warned_of(
    served: Served, apple: bytes, ratio: float, warned: str
) -> None:
    """The middle step of 12 has as much noise as signal before the scheduler's shift."""
    elsewhere = learnt(served.host.fingerprint, shift_of_size(32) / ratio)
    config = replace(served.config, presets={"mine": elsewhere})
    other = copy.copy(served)
    other.config = config
    warnings = other.generate().report.warnings
    sentence = "at the middle step the noise is {} times that of the run which the preset was learnt along:"
    assert [each.startswith(sentence.format(warned)) for each in warnings] == ([True] if warned else [])
    assert other.generate(cache_predictor=b"reuse").report.warnings == []
    part = {"input_image": [apple], "strength": 0.5, "num_inference_steps": 24}
    assert other.generate(**part).report.warnings == []
