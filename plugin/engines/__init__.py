"""What runs the block stack at full steps. Each engine's module is imported only when that engine is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from plugin.engine_specs import ENGINES, EngineSpec, engine_spec
from plugin.parallelism import Parallelism

if TYPE_CHECKING:  # both import torch, which the table of engines does not need
    from plugin.engines.base import Engine
    from plugin.families.base import Family

__all__ = ["ENGINES", "EngineSpec", "engine_spec", "make_engine", "make_engines", "prepare_engines"]


def make_engine(name: str, family: Family, cache_dir: Path | None = None, threads: int | None = None) -> Engine:
    """Builds or loads the engine of one family's block stack; see `make_engines`."""
    return make_engines(name, {"transformer": family}, cache_dir, threads)["transformer"]


def make_engines(
    name: str,
    families: Mapping[str, Family],
    cache_dir: Path | None = None,
    threads: int | None = None,
    parallelism: Parallelism | None = None,
) -> Mapping[str, Engine]:
    """Builds or loads the engines of the block stacks of a pipeline's transformers.

    Args:
        name, families, cache_dir, parallelism: as `prepare_engines` takes them.
        threads: of one engine call on a CPU, at least 1; None for all cores.

    Returns:
        The engine of each, by the same names.

    Raises:
        ValueError: an unknown name.
        EngineError: an engine cannot be built or loaded; the message says why and what helps.
    """
    return prepare_engines(name, families, cache_dir, parallelism)(threads)


def prepare_engines(
    name: str,
    families: Mapping[str, Family],
    cache_dir: Path | None = None,
    parallelism: Parallelism | None = None,
) -> Callable[[int | None], Mapping[str, Engine]]:
    """Makes the files that engines run, where `EngineSpec.opens_file`: the torch blocks can go before one is opened, so
    that both are never in memory at once.

    Args:
        name: a name in `ENGINES`.
        families: of the transformers, by the component's name, with their blocks in place.
        cache_dir: where compiled forms are kept; None for the default of `plugin.paths.default_cache_dir`.
        parallelism: the processes that share a call, of the engine that has some; None for two that share the tokens.

    Returns:
        What makes or opens the engines, with the threads of one engine call. It may be called again.

    Raises:
        ValueError: an unknown name.
        EngineError: an engine cannot be built, or does not take the weights; the message says why and what helps. What
            is returned raises it too.
    """
    from plugin.engines.base import check_weights  # torch

    spec = engine_spec(name)
    for family in families.values():
        check_weights(spec, family)
    module = import_module(spec.module)
    if spec.is_parallel:
        return lambda threads: module.load_engines(families, threads, parallelism or Parallelism(sequence=2))
    make = module.prepare_engine if spec.opens_file else partial(partial, module.load_engine)
    makers = {component: make(family, spec, cache_dir) for component, family in families.items()}
    return lambda threads: {component: maker(threads) for component, maker in makers.items()}
