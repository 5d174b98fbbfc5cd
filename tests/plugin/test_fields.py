"""The table of fields: the inputs that come from it, their meanings, and ranges that are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import triton_taylorseer_client.messages
from plugin.config import ModelConfig
from plugin.fields import FIELDS
from plugin.limits import Limits
from plugin.request import InvalidRequest, parse_request
from plugin.tensors import INPUTS
from plugin.values import CacheSetting, Integer
from tests.support.documents import tables_of
from tests.support.paths import REPOSITORY, ROOT

EMOJI = ModelConfig.from_folder(REPOSITORY / "emoji_stream")
BY_NAME = {field.name: field for field in FIELDS}


def test_the_inputs_are_the_fields_in_their_order():
    assert list(INPUTS) == [field.name for field in FIELDS]
    assert list(INPUTS)[:4] == ["prompt", "negative_prompt", "class_label", "seed"]
    assert list(INPUTS)[-4:] == ["deadline_ms", "priority", "response_format", "preview"]
    assert len(INPUTS) == 27
    assert INPUTS["class_label"] == "TYPE_INT64"
    assert INPUTS["guidance_scale"] == "TYPE_FP32"


def test_the_clients_send_the_same_fields_but_the_format():
    sent = {name: kind.removeprefix("TYPE_").replace("STRING", "BYTES") for name, kind in INPUTS.items()}
    del sent["response_format"]  # the client always takes pixels
    assert sent == triton_taylorseer_client.messages.INPUTS
    assert list(sent) == list(triton_taylorseer_client.messages.INPUTS)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_has_a_meaning_in_sentences(field):
    assert re.fullmatch(r"[A-Z].*\.", field.meaning)
    assert field.values.allowed(Limits())


def test_no_option_stands_for_two_fields():
    options = [field.option for field in FIELDS if field.option]
    assert len(options) == len(set(options))
    assert all(re.fullmatch(r"--[a-z-]+", option) for option in options)


@pytest.mark.parametrize(
    "field", [each for each in FIELDS if isinstance(each.values, CacheSetting)], ids=lambda f: f.name
)
def test_a_range_of_the_cache_is_the_one_that_the_cache_checks(field):
    wrong = {"TYPE_INT32": -1, "TYPE_FP32": -1.0, "TYPE_STRING": b"none"}[field.type]
    with pytest.raises(InvalidRequest) as refusal:
        parse_request({"prompt": b"a cat", field.name: wrong}, EMOJI.defaults, EMOJI.limits, 0)
    assert f"must be {field.values.allowed(EMOJI.limits)}" in str(refusal.value)


@pytest.mark.parametrize("field", [each for each in FIELDS if isinstance(each.values, Integer)], ids=lambda f: f.name)
def test_both_ends_of_a_range_are_in_it(field):
    limits = Limits(takes_prompt=field.name != "class_label", num_classes=10)
    low, high = map(int, re.findall(r"-?\d+", field.values.allowed(limits)))
    for value in (low, high):
        assert field.values.read(value, limits) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"is {value}, must be from {low} to {high}"):
            field.values.read(value, limits)


def test_a_default_that_the_models_limits_exclude_is_refused():
    with pytest.raises(InvalidRequest, match="height is 64, must be a multiple of 16 from 16 to 32"):
        parse_request({"prompt": b"a cat"}, EMOJI.defaults, Limits(max_size=32), 0)


def test_every_range_is_in_the_reference():
    rows = {
        name: " ".join(row[2].split()).replace(",", "").replace("2^63-1", str(2**63 - 1))
        for row in tables_of(ROOT / "docs/reference.md")["Inputs"]
        for name in re.findall(r"`([a-z0-9_]+)`", row[0])
    }
    for field in FIELDS:
        limits = Limits() if field.name == "class_label" else EMOJI.limits
        missing = set(re.findall(r"-?\d+", field.values.allowed(limits))) - set(re.findall(r"-?\d+", rows[field.name]))
        assert not missing or field.name == "cache_preset", (field.name, missing)


def test_the_plain_models_process_needs_neither_torch_nor_numpy_for_the_names_of_tensors():
    check = "import sys, plugin.tensors; assert not {'torch', 'numpy', 'taylorseer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)
