"""The benchmark of weights below 16 bits in short form, and the two things that it computes in place of measuring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import quantized
from plugin.denoising.host import PipelineHost
from plugin.families.weights import weight_bytes
from taylorseer import CacheConfig
from tests.support.quantized import nf4_on_cpu
from tests.support.tiny import FAMILIES, latents_of

FLUX = FAMILIES["flux"]


def test_every_way_is_measured_against_the_whole_weights(tmp_path: Path):
    path = tmp_path / "quantized.json"
    quantized.main(["--steps", "10", "--pictures", "1", "--output", str(path)])
    result = json.loads(path.read_text())
    ways = result["ways"]
    assert list(ways) == list(quantized.WAYS)
    assert ways["bfloat16"]["psnr_db"]["off"] == [60.0]  # the reference itself
    psnr = {name: way["psnr_db"]["off"][0] for name, way in ways.items()}
    assert 60 > psnr["int8"] > psnr["fp8"] > psnr["nf4"] > 20
    nbytes = {name: sum(way["bytes"].values()) for name, way in ways.items()}
    assert nbytes["bfloat16"] > nbytes["int8"] > nbytes["fp8"] > nbytes["nf4"]
    for each in result["published_bytes"].values():
        assert each["bfloat16"] > each["int8"] > each["fp8"] > each["nf4"]


def test_parameters_of_published_models_are_as_many_as_their_authors_count():
    counted = quantized.published_bytes()
    for name in quantized.PUBLISHED_MODELS:
        parameters = quantized.PUBLISHED[name].parameters
        assert counted[name]["bfloat16"] == pytest.approx(2 * parameters, rel=0.01), name
    assert counted["T5-XXL"]["bfloat16"] == pytest.approx(2 * 4.76e9, rel=0.01)  # half of t5-v1_1-xxl's 11 billion


def test_nf4_on_a_gpu_is_what_rounded_weights_compute(tmp_path: Path):
    """Of the benchmark's nf4: bytes and results are those of bitsandbytes' own layers, of which a CPU runs the same."""
    results, sizes = [], []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        pipe = FLUX.make(folder, torch.bfloat16)
        if number:
            sizes.append(quantized.quantized_bytes(pipe.transformer, "nf4"))
            quantized.round_to_nf4(pipe.transformer)
        else:
            pipe.transformer = nf4_on_cpu(pipe.transformer, torch.bfloat16)
            sizes.append(weight_bytes(pipe.transformer))
        served = PipelineHost(pipe).pipeline_for(CacheConfig(interval=1))
        results.append(latents_of(served, **FLUX.arguments, **FLUX.sizes[0]))
    assert sizes[0] == sizes[1]
    assert torch.equal(*results)
