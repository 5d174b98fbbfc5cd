"""The memory that a stream model's requests may take."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from plugin.config import ModelConfig
from plugin.triton_model.settings import budget_bytes
from tests.support.paths import ROOT

GIB = 2**30
ARGS = {
    "model_name": "emoji_stream",
    "model_instance_name": "emoji_stream_0_0",
    "model_instance_kind": "CPU",
    "model_instance_device_id": "0",
    "model_config": json.dumps({"instance_group": [{"kind": "KIND_CPU", "count": 2}]}),
}


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """A model on a machine of which 40 GiB are free, of the GPU's memory 60 GiB."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=40 * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 80 * GIB))
    return ModelConfig.from_folder(ROOT / "model_repository/emoji_stream")


@pytest.mark.parametrize(
    ("device", "idle", "expected"),
    [
        ("cpu", 0, 10 * GIB),  # half of it, for two instances
        ("cpu", 8 * GIB, 8 * GIB),
        ("cpu", 50 * GIB, 0),
        ("cuda:0", 0, 24 * GIB),  # four fifths
        ("cuda:0", 10 * GIB, 20 * GIB),
    ],
)
def test_the_budget_leaves_room_for_what_idle_components_bring_back(config, device, idle, expected):
    config = replace(config, source=replace(config.source, device=device))
    assert budget_bytes(config, ARGS, idle) == expected


def test_a_budget_that_is_set_is_taken_as_it_is(config):
    assert budget_bytes(replace(config, memory_budget_mib=512), ARGS, 8 * GIB) == 512 * 2**20
