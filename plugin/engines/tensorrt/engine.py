"""Runs a block stack that TensorRT or TensorRT-RTX compiled, on an NVIDIA GPU."""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from plugin.engine_specs import EngineSpec
from plugin.engines.base import EngineError, UnsupportedShape
from plugin.engines.engine_cache import replace_file
from plugin.engines.tensorrt.package import Messages, load_package, present_architecture
from plugin.engines.tensorrt.record import BuiltEngine, find_engine
from plugin.families.base import BlockInputs, Family


class TensorRTEngine:
    """A compiled block stack. It runs one call at a time, on a CUDA stream of its own.

    Inputs are read from torch's memory and the output is written where the caller wants it, so nothing is copied. Each
    optimization profile has an execution context; all contexts share one scratch memory.

    Args:
        built: the engine in the cache.
        device: the GPU.

    Raises:
        EngineError: the file is damaged, the driver or the GPU cannot load it, or there is not enough memory.
    """

    needs_all_arguments = True

    def __init__(self, built: BuiltEngine, device: torch.device) -> None:
        self.name = built.engine
        self._built = built
        self._device = device
        self._messages = Messages(trt := load_package(built.flavour))
        self._runtime = trt.Runtime(self._messages.logger)
        self._engine = deserialize(self._runtime, self._messages, built)
        if getattr(self._engine, "streamable_weights_size", 0):
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()
        self._runtime_cache = _RuntimeCache(built)
        self._stream = torch.cuda.Stream(device)
        self._contexts = [self._context(trt, index) for index in range(len(built.profiles))]
        self._scratch = self._allocate_scratch()
        self._outputs = [
            name
            for name in (self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors))
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        ]
        self._seen: set[tuple[torch.Size, ...]] = set()  # shapes that have been run
        self._lock = threading.Lock()  # a context keeps the addresses of one call

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """See `Engine.run`; the result is `out`, or memory of its own.

        Raises:
            UnsupportedShape: no optimization profile takes the inputs.
            EngineError: TensorRT refuses to run; the message has its reason.
        """
        held = {name: tensor.contiguous() for name, tensor in inputs.items()}  # alive until the call is enqueued
        index = choose_profile(self._built, held)
        output = torch.empty_like(held["hidden_states"]) if out is None else out
        caller = torch.cuda.current_stream(self._device)
        with self._lock, torch.cuda.device(self._device):
            context = self._contexts[index]
            for name, tensor in held.items():
                context.set_input_shape(name, tuple(tensor.shape))
                context.set_tensor_address(name, tensor.data_ptr())
            for name in self._outputs:
                context.set_tensor_address(name, output.data_ptr())
            self._stream.wait_stream(caller)
            done = context.execute_async_v3(self._stream.cuda_stream)
            # The caller's stream waits too, so that memory it frees or writes after this call is no longer in use.
            caller.wait_stream(self._stream)
            if done and (shapes := tuple(tensor.shape for tensor in held.values())) not in self._seen:
                self._seen.add(shapes)
                self._runtime_cache.save()
        if not done:
            raise EngineError(f"engine {self.name} could not run: {self._messages.last_error()}")
        return output

    def _context(self, trt: ModuleType, index: int) -> Any:
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._built.flavour == "tensorrt-rtx":
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            # By default a shape first runs with other kernels, until its own are compiled: then its bits would change.
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            self._runtime_cache.attach(config)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(managed)
        if context is None or not context.set_optimization_profile_async(index, self._stream.cuda_stream):
            raise EngineError(f"engine {self.name} has no execution context: {self._messages.last_error()}")
        return context

    def _allocate_scratch(self) -> torch.Tensor:
        """Memory that all contexts share: calls run one after another on one stream."""
        wanted = max(
            self._engine.get_device_memory_size_for_profile_v2(index) for index in range(len(self._built.profiles))
        )
        try:
            scratch = torch.empty(max(wanted, 1), dtype=torch.uint8, device=self._device)
        except torch.cuda.OutOfMemoryError:
            raise EngineError(not_enough_memory(self.name, wanted, self._device)) from None
        for context in self._contexts:
            context.set_device_memory(scratch.data_ptr(), scratch.nbytes)
        return scratch


class _RuntimeCache:
    """What TensorRT-RTX compiles on the GPU when an engine first runs, kept beside the engine for the next start."""

    def __init__(self, built: BuiltEngine) -> None:
        self._path = built.path.with_name("runtime.cache")
        self._cache: Any = None
        self._saved = 0

    def attach(self, config: Any) -> None:
        """Gives a runtime configuration the one cache of this engine."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with suppress(OSError):
                content = self._path.read_bytes()
                self._saved = len(content)
                self._cache.deserialize(content)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes what has been added. A folder that cannot be written is no error: the cache only saves time."""
        if self._cache is None:
            return
        serialized = self._cache.serialize()
        content = b"" if serialized is None else bytes(serialized)
        if content and len(content) != self._saved:
            self._saved = len(content)
            with suppress(OSError):
                replace_file(self._path, content)


def load_engine(family: Family, spec: EngineSpec, cache_dir: Path | None, threads: int | None) -> TensorRTEngine:
    """The engine that was built for this family's block stack and its GPU."""
    return prepare_engine(family, spec, cache_dir)(threads)


def prepare_engine(family: Family, spec: EngineSpec, cache_dir: Path | None) -> Callable[[int | None], TensorRTEngine]:
    """Finds the engine that was built for this family's block stack and its GPU; see
    `plugin.engines.prepare_engines`."""
    flavour = spec.flavour
    assert flavour is not None
    load_package(flavour)
    present_architecture(flavour)  # on a machine without a GPU, that is the message
    device: torch.device = family.transformer.device  # type: ignore[assignment]
    if device.type != "cuda":
        raise EngineError(f"device is {device}, must be cuda:0 or another GPU for engine {spec.name}")
    with torch.cuda.device(device):  # GPUs of one machine may differ
        built = find_engine(family, flavour, present_architecture(flavour), cache_dir, fp8=spec.fp8)

    def opened(threads: int | None) -> TensorRTEngine:
        with torch.cuda.device(device):
            return TensorRTEngine(built, device)

    return opened


def choose_profile(built: BuiltEngine, inputs: BlockInputs) -> int:
    """The index of the first optimization profile that takes the inputs.

    Raises:
        UnsupportedShape: none does; the message lists the sizes that the engine was built for.
        EngineError: an input has another dtype than the engine reads; its bytes would be misread.
    """
    for name, tensor in inputs.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype != built.input_dtypes[name]:
            raise EngineError(
                f"input {name} is {dtype}, must be {built.input_dtypes[name]} as the {built.flavour} engine was built"
            )
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    for index, profile in enumerate(built.profiles):
        if profile.takes(shapes):
            return index
    batch, tokens = shapes["hidden_states"][:2]
    built_for = "; ".join(
        f"{each.size} at batch {each.smallest['hidden_states'][0]} to {each.largest['hidden_states'][0]}"
        for each in built.profiles
    )
    raise UnsupportedShape(
        f"height, width or num_frames make {tokens} tokens at batch {batch}, must be of a size that the "
        f"{built.flavour} engine was built for: {built_for}"
    )


def deserialize(runtime: Any, messages: Messages, built: BuiltEngine) -> Any:
    """The ICudaEngine of a file in the cache, if its checksum is right.

    Raises:
        EngineError: the file is damaged, or the package refuses it; the message has the reason.
    """
    try:
        with built.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            digest = hashlib.sha256(plan).hexdigest()
            engine = runtime.deserialize_cuda_engine(plan) if digest == built.sha256 else None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise EngineError(f"engine {built.path} cannot be read ({error}): build it again") from None
    if digest != built.sha256:
        raise EngineError(f"engine {built.path} is damaged, its checksum is not that of its record: build it again")
    if engine is None:
        reason = messages.last_error()
        if "out of memory" in reason.lower():
            reason = not_enough_memory(built.flavour, built.engine_bytes, torch.device("cuda"))
        raise EngineError(f"engine {built.path} cannot be loaded: {reason}")
    return engine


def not_enough_memory(engine: str, wanted: int, device: torch.device) -> str:
    """A sentence with the GPU memory that an engine needs and the memory that is free, both in GiB."""
    free, _ = torch.cuda.mem_get_info(device)
    return (
        f"engine {engine} needs {wanted / 2**30:.1f} GiB of GPU memory and {free / 2**30:.1f} GiB are free: "
        "build it for fewer or smaller sizes, or with --weight-streaming"
    )
