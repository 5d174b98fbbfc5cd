"""The defaults that are written down: diffusers' own, and enough to plan every served model without it."""

from __future__ import annotations

import subprocess
import sys

import diffusers
import pytest

from plugin.serving.defaults import (
    ARGUMENTS,
    TEXT_TOKENS,
    TOKENS_WITHIN,
    arguments_of,
    signature_defaults,
    text_tokens_of,
)
from tests.support.paths import ROOT


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_have_the_defaults_of_their_class(name):
    signature = signature_defaults(getattr(diffusers, name).__init__)
    assert {argument: signature[argument] for argument in ARGUMENTS[name]} == ARGUMENTS[name]


@pytest.mark.parametrize("name", TEXT_TOKENS)
def test_pipelines_take_as_many_tokens_of_text_by_default(name):
    assert signature_defaults(getattr(diffusers, name).__call__).get("max_sequence_length", 0) == TEXT_TOKENS[name]


@pytest.mark.parametrize("name", TOKENS_WITHIN)
def test_other_pipelines_take_no_number_of_tokens(name):
    assert "max_sequence_length" not in signature_defaults(getattr(diffusers, name).__call__)


def test_classes_that_are_not_written_down_are_read_from_diffusers():
    assert arguments_of("CogView4Transformer2DModel")["num_attention_heads"] == 64
    assert text_tokens_of("CogView4Pipeline") == 1024
    assert text_tokens_of("StableDiffusionPipeline") == 0


def test_shipped_models_are_planned_without_diffusers():
    program = """
import sys
from plugin.config import ModelConfig
from plugin.paths import REPOSITORY
from plugin.serving.plan import architecture_of, example_request, plan_request
for folder in REPOSITORY.glob("*_stream"):
    config = ModelConfig.from_folder(folder)
    plan_request(config, architecture_of(config.source.pipeline), example_request(config))
print([name for name in ("diffusers", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
