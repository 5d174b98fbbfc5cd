"""The engines by name; each is imported only when asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from plugin.engines.base import Engine
from plugin.families.base import Family

ENGINES = {
    "torch": ("plugin.engines.torch_engine", "build_engine"),
    "onnxruntime": ("plugin.engines.onnxruntime_engine", "build_engine"),
    "triton": ("plugin.engines.triton_engine", "build_engine"),
    "tensorrt": ("plugin.engines.tensorrt.engine", "load_tensorrt"),
    "tensorrt-rtx": ("plugin.engines.tensorrt.engine", "load_tensorrt_rtx"),
    "tensorrt-fp8": ("plugin.engines.tensorrt.engine", "load_tensorrt_fp8"),
    "tensorrt-rtx-fp8": ("plugin.engines.tensorrt.engine", "load_tensorrt_rtx_fp8"),
}


def make_engine(name: str, family: Family, cache_dir: Path | None = None, threads: int | None = None) -> Engine:
    """Builds or loads the engine of a family's block stack.

    Args:
        name: a name in `ENGINES`.
        family: the family, with its blocks in place.
        cache_dir: where compiled forms are kept; None for the default of `plugin.paths.default_cache_dir`.
        threads: threads of one engine call on a CPU, at least 1; None for all cores.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ENGINES:
        raise ValueError(f"engine is {name!r}, must be one of: {', '.join(ENGINES)}")
    module, function = ENGINES[name]
    return getattr(import_module(module), function)(family, cache_dir, threads)
