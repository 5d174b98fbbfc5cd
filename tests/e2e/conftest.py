"""What the tests against a real Triton share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.support.browser import running_chromium
from tests.support.repository import make_repository
from tests.support.serving import Triton, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of this folder that fails is run once more, and the summary tells so.

    Tritonserver 24.10 has races of its own, found here one request in hundreds or thousands at a time (it loses a
    trace's context, crashes where a connection closes as its call ends), which fail a test in one run out of many.
    """
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.path.name != "test_fuzz.py":  # what it finds must be seen
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server with the shipped `emoji` model and the `faulty` one, for all modules but those that need their own."""
    repository = make_repository(tmp_path_factory.mktemp("triton") / "models")
    # Triton (24.10) holds models whose clients cancelled as their streams ended (docs/operating.md), as tests do.
    with running(repository, extra_args=("--exit-timeout-secs=5",)) as triton:
        yield triton


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for a module's tests: while it runs, no test of its process can run a loop of asyncio."""
    with running_chromium() as browser:
        yield browser
