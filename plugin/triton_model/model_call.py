"""Calls another model of the same server, for engine triton."""

from __future__ import annotations

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from plugin.engines.base import EngineError
from plugin.engines.triton_engine import EngineUnavailable
from plugin.families.base import BlockInputs
from plugin.tensors import BLOCK_STACK_OUTPUT
from plugin.triton_model.responses import is_not_ready


def call_model(model: str, inputs: BlockInputs) -> torch.Tensor:
    """A `plugin.engines.triton_engine.ModelCall` through Triton; tensors go in and come out without a copy of ours."""
    device = inputs["hidden_states"].device
    memory = pb_utils.TRITONSERVER_MEMORY_GPU if device.type == "cuda" else pb_utils.TRITONSERVER_MEMORY_CPU
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor.from_dlpack(name, tensor.detach()) for name, tensor in inputs.items()],
        requested_output_names=[BLOCK_STACK_OUTPUT],
        preferred_memory=pb_utils.PreferredMemory(memory, device.index or 0),
    )
    try:
        response = request.exec()
        failure = response.error().message() if response.has_error() else None
    except pb_utils.TritonModelException as error:
        failure = str(error)
    if failure is not None:
        reason = failure.removeprefix(f"Model {model} - Error when running inference: ")
        raise (EngineUnavailable if is_not_ready(reason) else EngineError)(reason)
    return from_dlpack(response.output_tensors()[0].to_dlpack())
