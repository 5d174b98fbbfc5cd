"""Loads a folder of nodes as ComfyUI does (custom-nodes/backend/lifecycle).

ComfyUI scans `custom_nodes` for Python modules, and one that exports NODE_CLASS_MAPPINGS is treated as custom nodes.
The folder's name need not be one that Python can import, so it is loaded by its path, under a name of its own; the
modules in it import each other by relative names, as the page's example does. Which name that is the page does not say.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from tests.support.comfyui.builtin import builtin_nodes
from tests.support.comfyui.executor import Executor
from tests.support.comfyui.host import Host, importable
from tests.support.paths import ROOT

PACK = ROOT / "clients/comfyui"
FOLDER = "triton-taylorseer"  # as users name it


class FailedToLoad(Exception):
    """A folder without nodes."""


@contextmanager
def comfyui(folder: Path, environment: Mapping[str, str], pack: Path = PACK) -> Iterator[Executor]:
    """A ComfyUI with the nodes of a pack, copied into its folder, and some of its own.

    Args:
        folder: of this ComfyUI; is made.
        environment: variables with which it is started, beside those of this process.
        pack: the folder of the nodes.
    """
    host = Host(folder)
    place = folder / "custom_nodes" / FOLDER
    shutil.copytree(pack, place, ignore=shutil.ignore_patterns("__pycache__"))
    with importable(host), loaded(place, environment) as module:
        titles: dict[str, str] = getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", {})
        yield Executor({**builtin_nodes(host), **module.NODE_CLASS_MAPPINGS}, titles, host)


@contextmanager
def loaded(place: Path, environment: Mapping[str, str]) -> Iterator[ModuleType]:
    """The module of a folder below custom_nodes, for the block."""
    name = str(place)
    spec = importlib.util.spec_from_file_location(name, place / "__init__.py", submodule_search_locations=[str(place)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules):
        sys.modules[name] = module
        with patch.dict(os.environ, environment):
            spec.loader.exec_module(module)
        if not isinstance(getattr(module, "NODE_CLASS_MAPPINGS", None), dict):
            raise FailedToLoad(f"{place.name} has no NODE_CLASS_MAPPINGS")
        if "NODE_CLASS_MAPPINGS" not in getattr(module, "__all__", ["NODE_CLASS_MAPPINGS"]):
            raise FailedToLoad(f"{place.name} does not export NODE_CLASS_MAPPINGS")
        yield module
