"""The block stack in ONNX Runtime: the default without a GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime
import torch

from plugin.engine_specs import EngineSpec
from plugin.engines.export import optimized_onnx
from plugin.engines.onnxruntime_session import providers, session_options
from plugin.families.base import BlockInputs, Family

_ONNX_TYPES = {  # onnx.TensorProto.DataType
    torch.float32: 1,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
}


class OnnxRuntimeEngine:
    """An ONNX Runtime session that runs the exported block stack. No more calls run at once than the cores have threads
    for; further ones wait.

    Inputs and output are bound to torch memory, so nothing is copied on the way in or out.

    Args:
        path: the optimised ONNX file.
        threads: threads of one call on a CPU, at least 1; None for all cores.
        device: what it runs on.

    Raises:
        EngineError: the device is a GPU, and this ONNX Runtime does not support GPUs.
    """

    name = "onnxruntime"
    needs_all_arguments = True

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
        if output.is_cuda:  # ONNX Runtime has a stream of its own, which does not wait for torch's
            torch.cuda.current_stream(output.device).synchronize()
        with self._turns:
            self._session.run_with_iobinding(binding)
        return output


def load_engine(family: Family, spec: EngineSpec, cache_dir: Path | None, threads: int | None) -> OnnxRuntimeEngine:
    """Exports and optimises the family's block stack unless the cache has it, and loads it."""
    return prepare_engine(family, spec, cache_dir)(threads)


def prepare_engine(
    family: Family, spec: EngineSpec, cache_dir: Path | None
) -> Callable[[int | None], OnnxRuntimeEngine]:
    """Exports and optimises the family's block stack unless the cache has it; see `plugin.engines.prepare_engines`."""
    return partial(OnnxRuntimeEngine, make_file(family, cache_dir), device=family.device)


def make_file(family: Family, cache_dir: Path | None) -> Path:
    """The path of the optimised ONNX file, made now unless the cache has it."""
    return optimized_onnx(family, cache_dir)


def _memory_of(tensor: torch.Tensor) -> tuple[str, int, int, tuple[int, ...], int]:
    device = tensor.device
    return device.type, device.index or 0, _ONNX_TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()
