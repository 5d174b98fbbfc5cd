"""What the tests against a real Triton share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.repository import copy_model, make_repository
from tests.support.serving import Triton, running

GUARDED_MODEL = '''
"""The emoji model, whose engine looks at every call whether all caches together are within the budget."""

from plugin.triton_model import StreamModel
from tests.support.engines import GuardedEngine


class TritonPythonModel(StreamModel):
    def load_host(self):
        host = super().load_host()
        host.engines["transformer"] = GuardedEngine(host.engines["transformer"], self.check_budget)
        return host

    def check_budget(self, _):
        held = sum(job.cache_bytes for job in list(self.answers.jobs))
        if held > self.admission.budget_bytes or self.admission.held_bytes > self.admission.budget_bytes:
            raise RuntimeError(f"{held} bytes of caches, {self.admission.held_bytes} set aside: over the budget")
'''


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of this folder that fails is run once more, and the summary tells so.

    Tritonserver 24.10 has races of its own, found here one request in hundreds or thousands at a time (it loses a
    trace's context, crashes where a connection closes as its call ends), which fail a test in one run out of many.
    """
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server with the shipped `emoji` model and the `faulty` one, for all modules but those that need their own."""
    with running(make_repository(tmp_path_factory.mktemp("triton") / "models")) as triton:
        yield triton


@pytest.fixture(scope="session")
def many(triton: Triton) -> Triton:
    """The same server with more models: `packed`, with one lane; `guarded`, whose engine calls always have two rows,
    with a budget of a few requests that its engine looks after; and `twin`, of two instances."""
    folder = triton.repository
    copy_model(folder, "packed", engine_lanes="1", max_batch="4", max_waiting="24")
    copy_model(folder, "guarded", fixed_batch="2", max_in_flight="12", memory_budget_mib="2")
    (folder / "guarded_stream/1/model.py").write_text(GUARDED_MODEL)
    copy_model(folder, "twin", max_in_flight="2", fixed_batch="1")
    path = folder / "twin_stream/config.pbtxt"
    path.write_text(path.read_text().replace("count: 1", "count: 2"))
    triton.load("packed", "guarded", "twin")
    return triton
