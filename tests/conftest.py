"""What all tests share: markers by folder and fixture, tiny pipelines, one folder of engines, one thread."""

from __future__ import annotations

import os

# Before torch is imported, here and in processes that tests start: tiny operations are fastest, and bits reproducible,
# on one thread. Models served by a real Triton set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The servers of tests are on this machine, and tritonclient's gRPC would ask a proxy of the environment for them.
os.environ.update(no_grpc_proxy="127.0.0.1,localhost")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from tests.support.tiny.flux import tiny_flux

# The marker of a test that uses a fixture, and of all tests of a folder; others are marked one by one.
OF_FIXTURES = {
    **dict.fromkeys(("echo", "server", "servers"), "triton"),
    **dict.fromkeys(("engine_cache", "compiled", "built_twice"), "compiles"),
    **dict.fromkeys(("operator_types", "package", "types"), "network"),
    "trained": "trains",
}
# Files begin in this order, the others after them: no worker is left with a long one at the end.
LONGEST_FIRST = (
    "test_many.py",
    "test_fp8.py",
    "test_faults.py",
    "test_benchmarks.py",
    "test_watch.py",
    "test_build.py",
    "test_engine_triton.py",
    "test_inductor_engine.py",
    "test_families.py",
    "test_conventions.py",
)
OF_FOLDERS = {Path(__file__).parent / "e2e": "triton"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        markers = {marker for name, marker in OF_FIXTURES.items() if name in fixtures}
        markers |= {marker for folder, marker in OF_FOLDERS.items() if folder in item.path.parents}
        for marker in sorted(markers):
            item.add_marker(marker)
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, the same in all of its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def make_flux(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FluxPipeline]:
    """Makes tiny FLUX pipelines; arguments as in `tiny_flux`."""
    return lambda **options: tiny_flux(tmp_path_factory.mktemp("flux"), **options)


@pytest.fixture(scope="session")
def flux(make_flux: Callable[..., FluxPipeline]) -> FluxPipeline:
    """A tiny pipeline shaped like FLUX.1-dev, shared: tests must not change it."""
    return make_flux()


@pytest.fixture(scope="session")
def engine_cache(run_folder: Path) -> Path:
    """A folder for compiled engines that all tests and workers share: each is built once, under a lock."""
    return run_folder / "engines"


@pytest.fixture(scope="session", autouse=True)
def kept_exports(run_folder: Path) -> Iterator[Path]:
    """A folder of exported block stacks, which all tests and all workers share: none is exported twice."""
    folder = run_folder / "exports"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_TAYLORSEER_EXPORTS", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that sets a number of threads sets it for itself alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
