"""The block stack in ONNX Runtime: the default without a GPU."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import onnxruntime
import torch

from plugin.engines.base import EngineError
from plugin.engines.export import optimized_onnx
from plugin.families.base import BlockInputs, Family

_ONNX_TYPES = {  # onnx.TensorProto.DataType
    torch.float32: 1,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.bfloat16: 16,
}


class OnnxRuntimeEngine:
    """An ONNX Runtime session over the exported block stack; as many calls at a time as the cores have threads for.

    Inputs and output are bound to torch memory, so nothing is copied on the way in or out.

    Args:
        path: the optimised ONNX file.
        threads: threads of one call on a CPU, at least 1; None for all cores.
        device: what it runs on.

    Raises:
        EngineError: the device is a GPU, and this ONNX Runtime serves none.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None, device: torch.device) -> None:
        self._session = onnxruntime.InferenceSession(
            str(path), session_options(threads, optimize=False), providers=providers(device)
        )
        self._output = self._session.get_outputs()[0].name
        cores = len(os.sched_getaffinity(0))
        self._turns = threading.BoundedSemaphore(max(1, cores // (threads or cores)))

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """See `Engine.run`."""
        binding = self._session.io_binding()
        held = {name: tensor.contiguous() for name, tensor in inputs.items()}  # alive until the call is over
        for name, tensor in held.items():
            binding.bind_input(name, *_memory_of(tensor))
        output = torch.empty_like(held["hidden_states"]) if out is None else out
        binding.bind_output(self._output, *_memory_of(output))
        if output.is_cuda:  # ONNX Runtime has a stream of its own, and does not wait for torch's
            torch.cuda.current_stream(output.device).synchronize()
        with self._turns:
            self._session.run_with_iobinding(binding)
        return output


def build_engine(family: Family, cache_dir: Path | None, threads: int | None) -> OnnxRuntimeEngine:
    """Exports and optimises the family's block stack unless the cache has it, and loads it."""
    return OnnxRuntimeEngine(optimized_onnx(family, cache_dir), threads, family.device)


def session_options(threads: int | None, *, optimize: bool) -> onnxruntime.SessionOptions:
    """Options of a session that optimises a graph (`optimize`) or runs one that has been optimised before."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or 0
    # Threads that spin while they wait take the cores from the other requests' forecast steps: without it one request
    # alone is a fifth slower on two cores, and two at once are twice as fast.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; its warnings are about graph clean-up
    return options


def providers(device: torch.device) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers for a device with their options, the preferred one first.

    Raises:
        EngineError: the device is a GPU, and this ONNX Runtime serves none.
    """
    on_cpu: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    if device.type == "cpu":
        return [on_cpu]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise EngineError(
            f"engine onnxruntime on {device} needs an ONNX Runtime with CUDA: "
            "`pip uninstall onnxruntime && pip install onnxruntime-gpu`, or another engine, or device cpu"
        )
    # Without TF32, as torch multiplies float32 by itself and TensorRT is told to here.
    return [("CUDAExecutionProvider", {"device_id": str(device.index or 0), "use_tf32": "0"}), on_cpu]


def _memory_of(tensor: torch.Tensor) -> tuple[str, int, int, tuple[int, ...], int]:
    device = tensor.device
    return device.type, device.index or 0, _ONNX_TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()
