"""A ComfyUI, by the stand-in of its documented interface, and modules of the nodes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.comfyui.behaviours import NOWHERE
from tests.support.comfyui.executor import Executor
from tests.support.comfyui.loading import FOLDER, comfyui


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Executor]]:
    """Starts a ComfyUI whose environment names servers, one by default that is not there."""
    with ExitStack() as stack:

        def started(url: str = NOWHERE, **environment: str) -> Executor:
            folder = tmp_path / f"ComfyUI{len([*tmp_path.iterdir()])}"
            return stack.enter_context(comfyui(folder, {"TRITON_TAYLORSEER_URL": url, **environment}))

        yield started


@pytest.fixture
def ui(start: Callable[..., Executor]) -> Executor:
    """A ComfyUI that has found no server when it started."""
    return start()


@pytest.fixture
def module(ui: Executor) -> Callable[[str], Any]:
    """A module of the nodes, by its name."""

    def found(name: str) -> ModuleType:
        place = ui.host.folder / "custom_nodes" / FOLDER
        assert str(place) in sys.modules
        return importlib.import_module(f"{place}.{name}")

    return found
