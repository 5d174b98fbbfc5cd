"""What runs the block stack at full steps. Each engine's module is imported only when that engine is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from plugin.engine_specs import ENGINES, EngineSpec, engine_spec

if TYPE_CHECKING:  # both import torch, which the table of engines does not need
    from plugin.engines.base import Engine
    from plugin.families.base import Family

__all__ = ["ENGINES", "EngineSpec", "engine_spec", "make_engine"]


def make_engine(name: str, family: Family, cache_dir: Path | None = None, threads: int | None = None) -> Engine:
    """Builds or loads the engine of a family's block stack.

    Args:
        name: a name in `ENGINES`.
        family: the family, with its blocks in place.
        cache_dir: where compiled forms are kept; None for the default of `plugin.paths.default_cache_dir`.
        threads: of one engine call on a CPU, at least 1; None for all cores.

    Raises:
        ValueError: an unknown name.
        EngineError: the engine cannot be built or loaded; the message says why and what helps.
    """
    spec = engine_spec(name)
    return import_module(spec.module).load_engine(family, spec, cache_dir, threads)
