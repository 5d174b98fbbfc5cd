"""The processes of one engine call: how many, on which devices, and how many bytes they exchange."""

from __future__ import annotations

import re

import pytest

from plugin.config import ModelConfig
from plugin.parallelism import Parallelism, exchanged_bytes, handed_bytes
from plugin.repository import InvalidConfig
from tests.support.paths import REPOSITORY

PIPELINE = {"pipeline": str(REPOSITORY / "emoji/1/pipeline")}


def config_of(**parameters: str) -> ModelConfig:
    return ModelConfig.from_parameters({**PIPELINE, **parameters}, REPOSITORY / "emoji_stream")


@pytest.mark.parametrize(
    ("parallelism", "device", "devices"),
    [
        (Parallelism(2), "cpu", ("cpu", "cpu")),
        (Parallelism(2, 2), "cuda:4", ("cuda:4", "cuda:5", "cuda:6", "cuda:7")),
        (Parallelism(1, 2), "cuda", ("cuda:0", "cuda:1")),
        (Parallelism(2, devices=("cuda:3", "cuda:1")), "cuda:3", ("cuda:3", "cuda:1")),
    ],
)
def test_the_first_process_is_on_the_pipelines_device(parallelism, device, devices):
    assert parallelism.devices_from(device) == devices


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sequence_parallel": "2"}, "parameter 'sequence_parallel' is 2, must be left out with engine onnxruntime"),
        ({"cfg_parallel": "2"}, "parameter 'cfg_parallel' is 2, must be left out with engine onnxruntime"),
        ({"devices": "cpu"}, "parameter 'devices' is ('cpu',), must be left out with engine onnxruntime"),
        ({"engine": "parallel"}, "parameter 'sequence_parallel' is 1, must be at least 2 with engine parallel"),
        (
            {"engine": "parallel", "sequence_parallel": "2", "cfg_parallel": "2", "devices": "cpu, cpu"},
            "parameter devices is cpu, cpu, must be 4 devices: sequence_parallel 2 x cfg_parallel 2",
        ),
        (
            {"engine": "parallel", "sequence_parallel": "2", "device": "cuda:0", "devices": "cuda:1, cuda:2"},
            "parameter devices is cuda:1, cuda:2, must begin with the pipeline's device, cuda:0",
        ),
        (
            {"engine": "parallel", "sequence_parallel": "2", "device": "cuda:1", "devices": "cuda:1, cuda:1"},
            "parameter devices has cuda:1 twice, must name each GPU once",
        ),
        (
            {"engine": "parallel", "sequence_parallel": "2", "devices": "cpu, cuda:0"},
            "parameter devices is cpu, cuda:0, must be devices of one kind",
        ),
        ({"engine": "parallel", "sequence_parallel": "0"}, "must be an integer of at least 1"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(parameters, message):
    with pytest.raises(InvalidConfig, match=re.escape(message)):
        config_of(**parameters)


def test_parameters_become_the_settings_of_the_engine_and_other_engines_have_none():
    config = config_of(engine="parallel", sequence_parallel="3", cfg_parallel="2", device="cuda:2")
    assert config.parallelism == Parallelism(3, 2)
    assert config_of().parallelism is None


def test_bytes_are_those_that_each_process_sends_each_other():
    """Counted token by token: a process keeps what stays in its own run and share."""
    tokens, heads, head_dim, processes = 24, 6, 8, 3
    owner_of_token = [token * processes // tokens for token in range(tokens)]
    owner_of_head = [head * processes // heads for head in range(heads)]
    moved = sum(owner != other for owner in owner_of_token for other in owner_of_head) * head_dim
    assert exchanged_bytes(tokens, heads * head_dim, 5, 2, 4, processes) == 4 * 5 * 2 * moved * 4
    assert exchanged_bytes(tokens, heads * head_dim, 5, 2, 4, 1) == 0


def test_bytes_at_the_edge_are_what_goes_out_and_what_comes_back():
    """Two of three processes get 8 of 24 tokens, 4 of 12 of the text, their tables and the whole condition."""
    width, element = 16, 2
    each = (8 + 4) * width * element + 8 * width * element + 36 * 10 // 3 + width * element
    assert handed_bytes(24, 12, width, 36 * 10, 1, element, 3) == 2 * each
