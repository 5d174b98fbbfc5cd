"""Quantises the linear layers of an exported block stack to fp8 (E4M3) with nvidia-modelopt, from inputs recorded in
runs of the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime

from plugin.engines.base import EngineError
from plugin.engines.export import OPSET
from plugin.engines.tensorrt.record import Quantized
from plugin.families.base import BlockInputs
from plugin.request import GenerationRequest

OLDEST = 89  # Ada; Hopper and Blackwell follow
_PRODUCT = "product_of_activations_"  # prefix of the names of such matrix multiplications

Samples = Sequence[BlockInputs]


@dataclass(frozen=True)
class Calibration:
    """The runs of the model from which the ranges of its activations are taken.

    Attributes:
        requests: at least one; each is run with the cache off.
        steps: how many steps of each run are recorded, evenly spread from the first to the last; at least 1.

    Raises:
        ValueError: there is no request, or no step.
    """

    requests: tuple[GenerationRequest, ...]
    steps: int

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("calibration-prompts is empty, must hold at least one prompt")
        if self.steps < 1:
            raise ValueError(f"calibration-steps is {self.steps}, must be at least 1")


def versions() -> tuple[str, str]:
    """The versions of the packages that decide what is quantised and how."""
    return version("nvidia-modelopt"), onnxruntime.__version__


def load_modelopt() -> Callable[..., None]:
    """nvidia-modelopt's quantiser of ONNX files.

    Raises:
        EngineError: it is not installed; the message says how to get it.
    """
    try:
        return import_module("modelopt.onnx.quantization").quantize
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise EngineError(
            f"precision fp8 needs the package nvidia-modelopt, which cannot be imported ({reason}): install this "
            "package's extra fp8, in its checkout by pip install -e '.[fp8]'"
        ) from None


def check_architectures(architectures: Sequence[str]) -> None:
    """Checks that GPUs multiply in fp8.

    Args:
        architectures: of the GPUs, as "SM89".

    Raises:
        EngineError: one of them is too old.
    """
    for architecture in architectures:
        if int(architecture.removeprefix("SM")) < OLDEST:
            raise EngineError(
                f"precision is fp8 for {architecture}, must be bf16, fp16 or fp32 there: GPUs multiply in fp8 from "
                f"SM{OLDEST} on (Ada, Hopper, Blackwell)"
            )


def quantize(exported: Path, samples: Samples, quantized: Path) -> Quantized:
    """Writes the fp8 form of an exported block stack: its linear layers multiply fp8 by fp8, the rest is unchanged.

    Each activation has one scale, from the largest value in the samples; weights have one for each channel. The
    products within attention stay in float16: in fp8 they cost the embedded model more quality than its linear layers.
    Layers of one row for each request, such as those that modulate by the timestep, stay too: they take hardly any
    time.

    Args:
        exported: the ONNX file in float16. It is changed, and intermediate files as large as the weights are written to
            its folder.
        samples: inputs of the block stack.
        quantized: the file to write, its weights beside it.

    Raises:
        EngineError: nvidia-modelopt is missing, fails or finds nothing to quantise.
    """
    run_modelopt = load_modelopt()
    _name_products(exported)
    try:
        with import_module("onnx_graphsurgeon.logger").G_LOGGER.suppress():  # it warns of every tensor in fp8
            run_modelopt(
                str(exported),
                quantize_mode="fp8",
                calibration_method="max",
                calibration_data_reader=_Reader(samples),
                calibration_eps=_execution_providers(),
                op_types_to_quantize=["MatMul"],
                nodes_to_exclude=[_PRODUCT],
                # Its own searches for attention and for vectors miss some, and then also exclude every node whose name
                # begins with the name of one that they found.
                disable_mha_qdq=True,
                enable_gemv_detection_for_trt=False,
                high_precision_dtype="fp16",
                opset=OPSET,
                use_external_data_format=True,
                output_path=str(quantized),
                log_level="CRITICAL",
            )
    except OSError:  # the disk is full
        raise
    except Exception as error:  # the library and its parts raise many kinds
        raise EngineError(
            f"nvidia-modelopt {version('nvidia-modelopt')} cannot quantise the block stack: "
            f"{type(error).__name__}: {error}"
        ) from error
    matmuls, in_fp8 = _count(quantized)
    if not in_fp8:
        raise EngineError(f"nvidia-modelopt quantised none of the block stack's {matmuls} matrix multiplications")
    return Quantized(matmuls, in_fp8, len(samples))


class _Reader:
    """Recorded inputs, with the interface of ONNX Runtime's CalibrationDataReader."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._next = 0

    def get_first(self) -> dict[str, npt.NDArray[Any]]:
        return _as_arrays(self._samples[0])

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        if self._next == len(self._samples):
            return None
        self._next += 1
        return _as_arrays(self._samples[self._next - 1])

    def rewind(self) -> None:
        self._next = 0


def _as_arrays(sample: BlockInputs) -> dict[str, npt.NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in sample.items()}


def _execution_providers() -> list[str]:
    """Where the exported stack is run: on the GPU if the installed ONNX Runtime supports it."""
    return ["cuda:0", "cpu"] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else ["cpu"]


def _name_products(exported: Path) -> None:
    """Names the matrix multiplications without a weight; all names have the same length, so none is a prefix."""
    model = onnx.load(str(exported), load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    products = (node for node in model.graph.node if node.op_type == "MatMul" and not weights.intersection(node.input))
    for number, node in enumerate(products):
        node.name = f"{_PRODUCT}{number:06d}"
    exported.write_bytes(model.SerializeToString())


def _count(quantized: Path) -> tuple[int, int]:
    """The numbers of matrix multiplications in a file, and of those whose factors are both dequantised."""
    nodes = onnx.load(str(quantized), load_external_data=False).graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    matmuls = [node for node in nodes if node.op_type in ("MatMul", "Gemm")]
    return len(matmuls), sum(dequantized.issuperset(node.input[:2]) for node in matmuls)
