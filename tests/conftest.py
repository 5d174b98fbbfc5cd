"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from tests.support.tiny.flux import tiny_flux


@pytest.fixture(scope="session")
def make_flux(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FluxPipeline]:
    """Makes tiny FLUX pipelines; arguments as in `tiny_flux`."""
    return lambda **options: tiny_flux(tmp_path_factory.mktemp("flux"), **options)


@pytest.fixture(scope="session")
def flux(make_flux: Callable[..., FluxPipeline]) -> FluxPipeline:
    """A tiny pipeline shaped like FLUX.1-dev, shared: tests must not change it."""
    return make_flux()


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for compiled engines that all tests share."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session", autouse=True)
def kept_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of exported block stacks, which all tests and all workers share: none is exported twice."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_TAYLORSEER_EXPORTS", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny operations are fastest, and bits reproducible, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
