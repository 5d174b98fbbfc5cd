"""A prepared folder of made-up emoji, which the tests of training share."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import made_up
from training.data import prepare


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of made-up emoji, by the code that prepares the real ones; only the renderer is a stand-in."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=made_up.draw))
        prepare(made_up.archives(folder), made_up.annotations(folder), folder / "data")
    return folder / "data"
