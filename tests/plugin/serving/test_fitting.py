"""Advice on what fits: true when it is followed, and no more than is needed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from plugin.config import ModelConfig
from plugin.paths import REPOSITORY
from plugin.repository import InvalidConfig
from plugin.serving.fitting import GIGABYTE, GPU_GIGABYTES, Fit, fits, with_settings
from plugin.serving.memory import MemoryPlan, plan_memory
from plugin.serving.plan import example_request


def config_of(model: str) -> ModelConfig:
    return ModelConfig.from_folder(REPOSITORY / f"{model}_stream")


@cache
def fits_of(model: str) -> tuple[Fit, ...]:
    config = config_of(model)
    return tuple(fits(config, example_request(config)))


def plan_with(model: str, settings: dict[str, str]) -> MemoryPlan:
    config = config_of(model)
    return plan_memory(with_settings(config, settings), example_request(config))


MODELS = ("flux_dev", "wan2_1_t2v", "qwen_image", "emoji")


@pytest.mark.parametrize("model", MODELS)
def test_advice_is_true_when_it_is_followed(model):
    for each in fits_of(model):
        plan = plan_with(model, dict(each.settings))
        assert plan.requests_within(each.gigabytes * GIGABYTE) == each.requests
        assert plan.total(max(each.requests, 1)) == each.needed
        assert (each.needed <= each.gigabytes * GIGABYTE) == (each.requests > 0)


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_advised_that_could_be_left_out(model):
    for each in fits_of(model):
        for name in each.settings:
            fewer = {other: text for other, text in each.settings.items() if other != name}
            assert plan_with(model, fewer).requests_within(each.gigabytes * GIGABYTE) < each.requests


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_advised_where_the_model_fits_as_it_is(model):
    own = plan_with(model, {})
    for each in fits_of(model):
        assert bool(each.settings) == (own.requests_within(each.gigabytes * GIGABYTE) == 0)


def test_flux_fits_as_published_settings_do():
    """In bfloat16 34 GiB do not fit on 24 GB, and do on 48; in int8 18.4 GiB fit on 24 and not on 16; in nf4 on 16."""
    small, middle, large, largest = fits_of("flux_dev")
    assert [each.gigabytes for each in fits_of("flux_dev")] == list(GPU_GIGABYTES) == [16, 24, 48, 80]
    assert small.settings["quantization"] == "transformer=nf4, text_encoder_2=nf4"
    assert middle.settings["quantization"] == "transformer=int8, text_encoder_2=int8"
    assert (large.settings, largest.settings, largest.requests) == ({}, {}, 4)


def test_the_largest_model_fits_on_no_small_gpu():
    """The transformer alone is 32.2 billion parameters, 18.1 GB in nf4."""
    smallest = fits_of("flux2_dev")[0]
    assert smallest.requests == 0
    assert smallest.needed > 16 * GIGABYTE
    assert "transformer=nf4" in smallest.settings["quantization"], "what comes nearest"


def test_one_request_of_a_model_that_is_too_large_for_more():
    config = replace(config_of("flux_dev"), max_in_flight=64)
    (fit,) = fits(config, example_request(config), [48])
    plan = plan_memory(config, example_request(config))
    assert 1 < fit.requests < 64
    assert plan.total(fit.requests) <= 48 * GIGABYTE < plan.total(fit.requests + 1)


def test_settings_are_read_and_checked_as_parameters_are():
    config = config_of("flux_dev")
    changed = with_settings(config, {"offload": "vae=idle", "vae_tiling": "true"})
    assert (changed.source.offload, changed.source.vae_tiling) == ((("vae", "idle"),), True)
    shared = with_settings(config, {"engine": "parallel", "sequence_parallel": "2"})
    assert shared.parallelism is not None
    assert shared.parallelism.processes == 2
    with pytest.raises(InvalidConfig, match="must be torch with transformer in parameter 'quantization'"):
        with_settings(config, {"engine": "onnxruntime", "quantization": "transformer=int8"})
