"""The packages of TensorRT: what is missing is named, and what we use of them is there."""

from __future__ import annotations

import sys

import pytest
import torch

from plugin.building.build_model import BuildRequest, build_model
from plugin.engines import make_engine
from plugin.engines.base import EngineError
from plugin.engines.tensorrt.package import present_architecture
from plugin.families import family_of
from tests.support.models import FLAVOUR, write_model
from tests.support.paths import ROOT

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")

RUN = {  # what plugin/engines/tensorrt/engine.py uses of TensorRT-RTX to run an engine: no GPU is here to show that
    "ICudaEngine": (
        "create_execution_context",
        "create_runtime_config",
        "get_device_memory_size_for_profile_v2",
        "get_tensor_mode",
        "get_tensor_name",
        "get_weight_streaming_automatic_budget",
        "num_io_tensors",
        "streamable_weights_size",
        "weight_streaming_budget_v2",
    ),
    "IExecutionContext": (
        "execute_async_v3",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
    ),
    "IRuntimeConfig": (
        "create_runtime_cache",
        "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    ),
    "IRuntimeCache": ("deserialize", "serialize"),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("OUTPUT",),
}


def test_the_package_has_what_runs_an_engine():
    source = (ROOT / "plugin/engines/tensorrt/engine.py").read_text()
    for name, members in RUN.items():
        assert [each for each in members if each not in source] == [], f"the table of {name} is of what is used"
        assert [each for each in members if not hasattr(getattr(trt, name), each)] == [], name


@pytest.mark.parametrize(("flavour", "package"), [("tensorrt", "tensorrt"), (FLAVOUR, "tensorrt_rtx")])
def test_no_tensorrt(flux, monkeypatch, tmp_path, flavour, package):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = f"engine {flavour} needs the package {package}, which cannot be imported"
    with pytest.raises(EngineError, match=sentence):
        make_engine(flavour, family_of(flux.transformer), tmp_path)
    with pytest.raises(EngineError, match=sentence):
        build_model(write_model(tmp_path, "dit", "float32"), BuildRequest(engine=flavour))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu(flux, tmp_path):
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU with its driver, and (this torch|torch finds)"):
        make_engine(FLAVOUR, family_of(flux.transformer), tmp_path)
    with pytest.raises(EngineError, match="or name the GPU to compile for with --target"):
        build_model(write_model(tmp_path, "dit", "float32"), BuildRequest())
    with pytest.raises(EngineError, match=r"gpus all$"):
        present_architecture("tensorrt")
