"""The options and execution providers of our ONNX Runtime sessions."""

from __future__ import annotations

import onnxruntime
import torch

from plugin.engines.base import EngineError


def session_options(threads: int | None, *, optimize: bool) -> onnxruntime.SessionOptions:
    """Options of a session.

    Args:
        threads: of one call on a CPU, at least 1; None for all cores.
        optimize: True for a session that optimises a graph, False for one that runs a graph optimised before.
    """
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or 0
    # Threads that spin while they wait take the cores from other requests' forecast steps. Without spinning, one
    # request alone is a fifth slower on two cores, and two at once are twice as fast.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; its warnings are about graph clean-up
    return options


def providers(device: torch.device) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers for a device with their options, the preferred one first.

    Raises:
        EngineError: the device is a GPU, and this ONNX Runtime does not support GPUs.
    """
    on_cpu: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    if device.type == "cpu":
        return [on_cpu]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise EngineError(
            f"engine onnxruntime on {device} needs an ONNX Runtime with CUDA: "
            "`pip uninstall onnxruntime && pip install onnxruntime-gpu`, or another engine, or device cpu"
        )
    # Without TF32: torch multiplies float32 without it too, and so does TensorRT as we configure it.
    return [("CUDAExecutionProvider", {"device_id": str(device.index or 0), "use_tf32": "0"}), on_cpu]
