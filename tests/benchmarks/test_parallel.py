"""What the speed-ups of several GPUs are computed from."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.parallel import FullStep, predictions
from plugin.families import family_of
from plugin.serving.published import PUBLISHED

PIPELINES = {
    "flux_dev": "black-forest-labs/FLUX.1-dev",
    "qwen_image": "Qwen/Qwen-Image",
    "wan2_1_t2v": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "hunyuan_video": "hunyuanvideo-community/HunyuanVideo",
}


@pytest.mark.parametrize("model", PIPELINES)
def test_operations_are_those_that_torch_counts(model):
    """On tensors without memory. Within 2 %: modulations and what Wan computes for its text are left out."""
    architecture = PUBLISHED[PIPELINES[model]]
    step = FullStep.of(model)
    with torch.device("meta"):
        family = family_of(getattr(diffusers, architecture.transformer)(**architecture.options).bfloat16())
    text = architecture.text_tokens
    tokens = step.tokens if model.startswith("wan") else step.tokens - text
    inputs: dict[str, Any] = _inputs(family, tokens, text)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        family.block_stack()(**inputs)
    assert counter.get_total_flops() == pytest.approx(step.flops, rel=0.02)


def _inputs(family: Any, tokens: int, text: int) -> dict[str, torch.Tensor]:
    lengths = {"batch": 1, **family.axis_sizes(tokens, text)}
    inputs = {}
    for name, example in family.example_inputs().items():
        axes = family.block_axes[name]
        shape = [lengths[axes[axis]] if axis in axes else length for axis, length in enumerate(example.shape)]
        inputs[name] = torch.empty(shape, dtype=example.dtype, device="meta")
    return inputs


def test_more_gpus_and_faster_links_are_expected_to_help_and_none_as_much_as_their_number():
    for model in predictions()["models"].values():
        for speed_ups in model["speed_up"].values():
            assert all(1 < speed_ups[number] < int(number) for number in speed_ups)
            assert sorted(speed_ups.values()) == [*speed_ups.values()]
        assert all(model["speed_up"]["pcie"][each] < model["speed_up"]["nvlink"][each] for each in ("2", "4", "8"))
