"""One small engine that the tests of this folder share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from diffusers import FluxPipeline

from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.options import BuildOptions, SizeClass
from plugin.engines.tensorrt.record import BuiltEngine
from plugin.families import family_of
from plugin.families.base import Family
from tests.support.models import FLAVOUR


@dataclass(frozen=True)
class Compiled:
    """An engine in a cache that holds no other.

    Attributes:
        family: of the block stack, a tiny FLUX in float32.
        options: as it was built.
        built: what is recorded of it.
        cache: the cache folder.
    """

    family: Family
    options: BuildOptions
    built: BuiltEngine
    cache: Path


@pytest.fixture(scope="session")
def compiled(flux: FluxPipeline, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """An engine of two sizes for two architectures; tests must not change it."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    cache = tmp_path_factory.mktemp("tensorrt")
    family = family_of(flux.transformer)
    sizes = (SizeClass("16x16", family.axis_sizes(16, 8)), SizeClass("32x32", family.axis_sizes(64, 8)))
    options = BuildOptions((1, 2, 2), sizes, ("SM89", "SM120"))
    return Compiled(family, options, build_engine(family, FLAVOUR, options, cache), cache)


@pytest.fixture
def own(compiled: Compiled, tmp_path: Path) -> Compiled:
    """The same engine in a copy of its cache, which a test may change."""
    cache = tmp_path / "copy"
    shutil.copytree(compiled.cache, cache)
    path = cache / compiled.built.path.relative_to(compiled.cache)
    return replace(compiled, built=replace(compiled.built, path=path), cache=cache)
