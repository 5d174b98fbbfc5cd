"""What a report warns of: text that was cut, a negative prompt that changes nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from diffusers import FluxPipeline

from plugin.config import ModelConfig
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.paths import REPOSITORY
from plugin.request import GenerationRequest

TOKENS = 16


@pytest.fixture(scope="module")
def host(make_flux: Any) -> PipelineHost:
    return PipelineHost(make_flux())


def request_of(**fields: Any) -> GenerationRequest:
    defaults = ModelConfig.from_folder(REPOSITORY / "emoji_stream").defaults
    small = {"height": 32, "width": 32, "num_inference_steps": 10, "prompt": "apple"}
    return replace(defaults, **small | fields)


def warnings(host: PipelineHost, **fields: Any) -> list[str]:
    return generate(host, request_of(**fields), max_sequence_length=TOKENS).report.warnings


def test_a_text_that_an_encoder_does_not_read_whole_is_named_with_its_tokens(host: PipelineHost) -> None:
    text = "red apple, " * 200
    pipe: FluxPipeline = host.pipe
    said = warnings(host, prompt=text, negative_prompt=text, guidance_scale=2.0)
    counted = {name: len(getattr(pipe, name)(text)["input_ids"]) for name in ("tokenizer", "tokenizer_2")}
    read = {"tokenizer": min(77, pipe.tokenizer.model_max_length), "tokenizer_2": TOKENS}
    assert said == [
        f"{field} has {counted[name]} tokens, of which the first {read[name]} are read ({name})"
        for field in ("prompt", "negative_prompt")
        for name in counted
    ]


def test_a_text_of_as_many_tokens_as_are_read_is_not_cut(host: PipelineHost) -> None:
    tokenizer = host.pipe.tokenizer_2
    words = 1
    while len(tokenizer("a " * (words + 1))["input_ids"]) <= TOKENS:
        words += 1
    assert not [each for each in warnings(host, prompt="a " * words) if "tokenizer_2" in each]
    assert [each for each in warnings(host, prompt="a " * (words + 1)) if "tokenizer_2" in each]


def test_what_diffusers_itself_cuts_off_is_what_is_said(host: PipelineHost) -> None:
    """diffusers' own warning is the oracle: it appears where, and only where, ours does."""
    pipe = host.pipe
    for text in ("a", "a " * 15, "a " * 40, "a " * 300):
        kept = pipe.tokenizer_2(text, padding="max_length", max_length=TOKENS, truncation=True).input_ids
        whole = pipe.tokenizer_2(text, padding="longest").input_ids
        cut = any("tokenizer_2" in each for each in warnings(host, prompt=text))
        assert cut == (len(whole) > len(kept)), text


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_negative_prompt_that_changes_nothing_is_named(host: PipelineHost, scale: float) -> None:
    (said,) = warnings(host, negative_prompt="blue", guidance_scale=scale)
    assert re.fullmatch(rf"negative_prompt changes nothing where guidance_scale is {scale:g}: .* above 1", said)
    assert warnings(host, negative_prompt="blue", guidance_scale=1.5) == []
    assert warnings(host, guidance_scale=scale) == []
