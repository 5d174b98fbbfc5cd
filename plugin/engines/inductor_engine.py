"""The block stack as an AOTInductor package: for GPUs without TensorRT. On a CPU it is for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch._inductor import aoti_load_package

from plugin.engine_specs import EngineSpec
from plugin.engines.base import EngineError
from plugin.engines.inductor_package import INPUTS, built_package, weights_of
from plugin.families.base import BlockInputs, Family


class InductorEngine:
    """A compiled block stack. It runs one call at a time, on the calling thread's CUDA stream.

    The package holds code alone. It computes with the weights of the stack that it is given, so these are in memory
    once, and as long as the engine is.

    torch holds Python's lock while a package computes on a CPU or launches its kernels on a GPU
    (https://github.com/pytorch/pytorch/issues/197516). The wait for the kernels of the call before is here, without it.

    Args:
        package: the file in the cache.
        stack: the block stack, with the weights that the package was compiled for.
        device: where they are.

    Raises:
        EngineError: torch refuses the file, or it computes with a tensor that the stack does not have.
    """

    name = "inductor"
    needs_all_arguments = True

    def __init__(self, package: Path, stack: nn.Module, device: torch.device) -> None:
        self._device = device
        index = -1 if device.index is None else device.index
        try:
            with torch.accelerator.device_index(device.index):  # loading changes the thread's device
                self._model = aoti_load_package(str(package), device_index=index)
            # In the order of the compiled function's arguments.
            self._dtypes: Mapping[str, str] = json.loads(self._model.get_metadata()[INPUTS])
            weights = weights_of(stack)
            self._weights = {name: weights[name] for name in self._model.get_constant_fqns()}
            aliases = {name: _alias(weight) for name, weight in self._weights.items()}
            self._model.load_constants(aliases, check_full_update=True, user_managed=True)
        except (RuntimeError, KeyError, ValueError) as error:
            raise EngineError(f"package {package} cannot be loaded ({error}): delete it and build it again") from error
        self._lock = threading.Lock()
        self._done = torch.cuda.Event() if device.type == "cuda" else None

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """See `Engine.run`; the result is memory of its own.

        Raises:
            EngineError: the inputs are not those that it was compiled for; nothing else would notice.
        """
        self._check(inputs)
        # Contiguous, as what it was compiled with: the code does not look at strides.
        given = {name: inputs[name].contiguous() for name in self._dtypes}
        with self._lock, torch.accelerator.device_index(self._device.index):
            if self._done is not None:
                self._done.synchronize()
            features: torch.Tensor = self._model(inputs=given)
            if self._done is not None:
                self._done.record()
        return features

    def _check(self, inputs: BlockInputs) -> None:
        if inputs.keys() != self._dtypes.keys():
            raise EngineError(f"inputs are {', '.join(inputs)}, must be {', '.join(self._dtypes)} as it was compiled")
        for name, tensor in inputs.items():
            if str(tensor.dtype) != self._dtypes[name]:
                raise EngineError(f"input {name} is {tensor.dtype}, must be {self._dtypes[name]} as it was compiled")


def load_engine(family: Family, spec: EngineSpec, cache_dir: Path | None, threads: int | None) -> InductorEngine:
    """Compiles the family's block stack unless the cache has it, and loads it. Torch's own number of threads applies.

    Raises:
        EngineError: it cannot be compiled or loaded; the message says why.
        OSError: the cache folder cannot be written.
    """
    stack = family.export_stack().eval()
    return InductorEngine(built_package(family, stack, cache_dir), stack, family.device)


def make_file(family: Family, cache_dir: Path | None) -> Path:
    """The path of the package, compiled now unless the cache has it; raises as `load_engine`."""
    return built_package(family, family.export_stack().eval(), cache_dir)


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor over the same memory that does not keep it: torch never lets go of the tensors that `load_constants` is
    given as `user_managed` (2.13)."""
    storage = tensor.untyped_storage()
    memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), storage.device, storage.nbytes())
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        memory, tensor.storage_offset(), tensor.shape, tensor.stride()
    )
