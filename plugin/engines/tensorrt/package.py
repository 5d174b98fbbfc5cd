"""The Python packages of TensorRT and TensorRT-RTX: how to load them, for which GPUs and precisions they compile."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from plugin.engines.base import EngineError, no_gpu

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # flavour -> Python package
FP8_DTYPE = "float16"  # of an fp8 engine's inputs, output and whatever is not quantised
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": FP8_DTYPE}  # -> dtype of the weights


def load_package(flavour: str) -> ModuleType:
    """The Python package of a flavour.

    Raises:
        EngineError: it is not installed; the message says how to get it.
    """
    package = PACKAGES[flavour]
    try:
        return import_module(package)
    except ImportError as error:
        hint = "pip install tensorrt-rtx" if flavour == "tensorrt-rtx" else "run in NVIDIA's Triton container"
        raise EngineError(
            f"engine {flavour} needs the package {package}, which cannot be imported ({error}): {hint}"
        ) from None


def present_architecture(flavour: str) -> str:
    """The architecture of torch's current GPU, as "SM90".

    Raises:
        EngineError: there is no GPU; the message says what helps.
    """
    if missing := no_gpu():
        more = ", or name the GPU to compile for with --target" if flavour == "tensorrt-rtx" else ""
        raise EngineError(f"engine {flavour} needs an NVIDIA GPU with its driver, and {missing}{more}")
    major, minor = torch.cuda.get_device_capability()
    return f"SM{major}{minor}"


def check_targets(trt: ModuleType, flavour: str, targets: tuple[str, ...]) -> None:
    """Checks the names of the GPU architectures to compile for.

    Raises:
        EngineError: the package cannot compile for one of them; the message lists those that it can compile for.
    """
    if targets and flavour != "tensorrt-rtx":
        raise EngineError(f"target is {', '.join(targets)}, must be left out: {flavour} compiles for the GPU at hand")
    for target in targets:
        known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
        if target not in known:
            listed = ", ".join(sorted(known, key=lambda name: int(name[2:])))
            raise EngineError(f"target is {target}, must be one of: {listed}")


class Messages:
    """A logger of the package. It keeps the errors, and what the compiler reports about memory.

    Attributes:
        logger: the ILogger to give to the package.
        errors: the messages of errors, oldest first.
        notes: messages such as "Total Weights Memory: 1024 bytes".
    """

    def __init__(self, trt: ModuleType) -> None:
        self.errors: list[str] = []
        self.notes: list[str] = []
        outer, severities = self, trt.ILogger.Severity

        class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                    outer.errors.append(message)
                elif message.startswith("Total "):
                    outer.notes.append(message)

        self.logger = Logger()

    def last_error(self) -> str:
        """The last error, or a phrase that says that there was none."""
        return self.errors[-1] if self.errors else "it gave no reason"
