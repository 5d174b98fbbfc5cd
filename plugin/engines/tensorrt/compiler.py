"""Compiles an ONNX file with TensorRT or TensorRT-RTX."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from plugin.engines.base import EngineError
from plugin.engines.engine_cache import replace_file
from plugin.engines.progress import BuildProgress
from plugin.engines.tensorrt.options import BuildOptions
from plugin.engines.tensorrt.package import Messages
from plugin.engines.tensorrt.record import Shapes


class Compiler:
    """One build: parses and compiles, and keeps what it learns on the way.

    Attributes:
        layers: of the network; 0 before `compile`.
    """

    def __init__(self, trt: ModuleType, flavour: str, options: BuildOptions, progress: BuildProgress) -> None:
        self._trt = trt
        self._name = f"{flavour} {trt.__version__}"
        self._options = options
        self._progress = progress
        self._messages = Messages(trt)
        self.layers = 0

    def compile(
        self, exported: Path, profiles: list[tuple[Shapes, Shapes, Shapes]], timing_cache: Path | None
    ) -> bytes:
        """The serialized engine of an ONNX file.

        Args:
            exported: the ONNX file.
            profiles: the smallest, the usual and the largest shapes of each optimization profile.
            timing_cache: a file of kernel timings to read and to add to, or None.

        Raises:
            EngineError: the file cannot be parsed or compiled; the message has the package's reason.
            OSError: the timing cache cannot be written.
        """
        builder = self._trt.Builder(self._messages.logger)
        network = self._parse(builder, exported)
        self.layers = network.num_layers
        config = builder.create_builder_config()
        configure(self._trt, config, self._options)
        for smallest, usual, largest in profiles:
            profile = builder.create_optimization_profile()
            for name in smallest:
                profile.set_shape(name, smallest[name], usual[name], largest[name])
            config.add_optimization_profile(profile)
        if timing_cache is not None:
            self._read_timing_cache(config, timing_cache)
        config.progress_monitor = _monitor(self._trt, self._progress)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            hint = " (with refit it wants a GPU to build on)" if self._options.refit else ""
            raise EngineError(f"{self._name} cannot compile the block stack{hint}: {self._messages.last_error()}")
        if timing_cache is not None:
            replace_file(timing_cache, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def planned(self, what: str) -> int | None:
        """Bytes of device memory that the compiler reported, the largest of all profiles and targets.

        Args:
            what: of the memory, as in the compiler's message: "Total Weights Memory".
        """
        found = [re.fullmatch(rf"{what}: (\d+) bytes", note) for note in self._messages.notes]
        return max((int(each[1]) for each in found if each), default=None)

    def _parse(self, builder: Any, exported: Path) -> Any:
        # Strongly typed: precisions are those of the ONNX file. Newer packages have no such flag, all networks are.
        flag = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = self._trt.OnnxParser(network, self._messages.logger)
        if not parser.parse_from_file(str(exported)):
            errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise EngineError(f"{self._name} cannot parse the block stack: {errors}")
        return network

    def _read_timing_cache(self, config: Any, path: Path) -> None:
        content = b""
        with suppress(OSError):
            content = path.read_bytes()
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):  # damaged: start with none
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def configure(trt: ModuleType, config: Any, options: BuildOptions) -> None:
    """Sets the options in an IBuilderConfig of the package, all but profiles and timing cache."""
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32, as in torch
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
    for i, target in enumerate(options.targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, target), i)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)


def _monitor(trt: ModuleType, progress: BuildProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.phase_started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step_done(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.phase_ended(phase_name)

    return Monitor()
