"""The table of parameters: each has a meaning, a default that its own reader would give, and one place for it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from plugin.config import ModelConfig, PipelineSource
from plugin.limits import Limits
from plugin.parameters import PARAMETERS, parse_parameters
from taylorseer import SETTINGS, CacheConfig


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_has_one_sentence_of_meaning(name):
    meaning = PARAMETERS[name].meaning
    assert meaning.endswith(".")
    assert ". " not in meaning.replace("begins with . and", "begins with a dot and")
    assert len(meaning) > len("Most frames.")


def test_a_default_is_what_its_text_would_be_read_as():
    for name, parameter in PARAMETERS.items():
        if parameter.default not in (None, ()):
            text = str(parameter.default).lower() if isinstance(parameter.default, bool) else str(parameter.default)
            assert parameter.read(text) == parameter.default, name


def test_a_model_that_sets_its_pipeline_alone_has_the_defaults_of_the_dataclasses():
    config = ModelConfig.from_parameters({"pipeline": "a/b"}, Path())
    assert config.presets == {"default": CacheConfig()}
    assert config.defaults.cache == CacheConfig()
    assert config.limits == Limits()
    assert config.source == PipelineSource("a/b")


def test_every_field_of_the_settings_has_its_parameter():
    of_config = {each.name for each in fields(ModelConfig)} - {"source", "defaults", "presets", "limits", "parallelism"}
    of_processes = {"sequence_parallel", "cfg_parallel", "devices"}  # `parallelism` is made of them
    of_others = {each.name for record in (PipelineSource, Limits) for each in fields(record)}
    of_cache = {f"cache_{name}" for name in SETTINGS}
    of_requests = {
        "num_inference_steps",
        "guidance_scale",
        "height",
        "width",
        "num_frames",
        "fps",
        "deadline_ms",
        "strength",
    }
    of_clients = {"examples"}  # shown to users, not read by the model
    expected = of_config | of_processes | of_others | of_cache | of_requests | of_clients | {"cache_preset"}
    assert set(PARAMETERS) == expected


def test_what_is_not_said_has_its_default():
    read = parse_parameters({"pipeline": "a/b", "height": "64"})
    assert read.pop("pipeline") == "a/b"
    assert read.pop("height") == 64
    assert read == {name: each.default for name, each in PARAMETERS.items() if name not in ("pipeline", "height")}
