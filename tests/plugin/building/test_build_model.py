"""What `build_model` refuses before it loads or compiles anything, and after it has loaded the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plugin.building.build_model import BuildRequest, build_model
from plugin.config import PipelineSource
from plugin.denoising.loading import load_pipeline
from plugin.engines.base import EngineError
from plugin.repository import InvalidConfig
from tests.support.models import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny FLUX of whole weights, served by torch."""
    return write_model(tmp_path_factory.mktemp("build"), "flux", "bfloat16", engine="torch", device="cpu")


def with_parameters(model: Path, folder: Path, **parameters: str) -> Path:
    """A copy of a model folder with other parameters."""
    lines = [
        line
        for line in (model / "config.pbtxt").read_text().splitlines()
        if not any(f'key: "{name}"' in line for name in parameters)
    ]
    lines += [
        f'parameters {{ key: "{name}" value: {{ string_value: "{text}" }} }}' for name, text in parameters.items()
    ]
    (folder / "flux_stream").mkdir()
    (folder / "flux_stream/config.pbtxt").write_text("\n".join(lines))
    return folder / "flux_stream"


def test_an_engine_for_blocks_that_the_parameters_quantise_is_not_built(model, tmp_path):
    folder = with_parameters(model, tmp_path, quantization="transformer=int8")
    assert build_model(folder, BuildRequest()) == []  # of torch, there is nothing to build
    message = "parameter 'engine' is 'onnxruntime', must be torch with transformer in parameter 'quantization'"
    with pytest.raises(InvalidConfig, match=message):
        build_model(folder, BuildRequest(engine="onnxruntime"))


def test_an_engine_for_blocks_that_were_saved_quantised_is_not_built(model, tmp_path):
    source = PipelineSource(str(model.parent / "pipeline"), dtype="bfloat16", quantization=(("transformer", "int8"),))
    load_pipeline(source).save_pretrained(tmp_path / "saved")
    assert load_pipeline(PipelineSource(str(tmp_path / "saved"), dtype="bfloat16")).transformer.dtype is torch.bfloat16
    folder = with_parameters(model, tmp_path, pipeline=str(tmp_path / "saved"))
    message = "engine is 'onnxruntime', must be 'torch' with the quantised weights of FluxTransformer2DModel"
    with pytest.raises(EngineError, match=message):
        build_model(folder, BuildRequest(engine="onnxruntime"))
