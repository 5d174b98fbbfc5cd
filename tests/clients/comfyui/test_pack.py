"""The folder of nodes as a whole: that it loads as ComfyUI documents it, and stands on what ComfyUI has anyway."""

from __future__ import annotations

import ast
import re
import sys
import tomllib

import pytest

from tests.support.comfyui.inputs import WIDGETS, inputs_of
from tests.support.comfyui.loading import PACK, FailedToLoad, loaded

OWN = ("TRITON_TAYLORSEER_SERVER", "TRITON_TAYLORSEER_CACHE")
MODULES = {path: path.read_text(encoding="utf-8") for path in sorted(PACK.glob("*.py"))}


def nodes_of_the_pack(ui):
    return {name: node for name, node in ui.nodes.items() if name.startswith("TritonTaylorSeer")}


def test_every_node_has_what_a_node_class_must_have(ui):
    nodes = nodes_of_the_pack(ui)
    assert len(nodes) == 9
    for name, node in nodes.items():
        assert callable(getattr(node, node.FUNCTION)), name
        assert node.CATEGORY == "triton-taylorseer"
        assert isinstance(node.RETURN_TYPES, tuple)
        assert len(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
        assert "(triton-taylorseer)" in ui.titles[name]
    assert [name for name, node in nodes.items() if getattr(node, "OUTPUT_NODE", False)] == [
        "TritonTaylorSeerSaveImage"
    ]


def test_every_widget_has_a_default_inside_its_range(ui):
    for name, node in nodes_of_the_pack(ui).items():
        for each in inputs_of(node).values():
            where = f"{name}.{each.name}"
            if not each.is_widget:
                assert each.type in ("IMAGE", "MASK", "STRING", *OWN), where
                continue
            assert each.type in WIDGETS
            assert each.options["tooltip"]
            if each.type in ("INT", "FLOAT"):
                assert each.options["min"] <= each.options["default"] <= each.options["max"], where
            elif each.type != "COMBO":
                assert "default" in each.options, where


def test_each_default_is_some_steps_above_the_minimum(ui):
    """Else a page that rounds to steps, as ComfyUI's may, would change it."""
    for name, node in nodes_of_the_pack(ui).items():
        for each in inputs_of(node).values():
            if each.type == "INT" and each.is_widget:
                low, step = each.options["min"], each.options.get("step", 1)
                assert (each.options["default"] - low) % step == 0, f"{name}.{each.name}"


def test_it_imports_only_what_comfyui_has_and_the_client():
    allowed = {"numpy", "torch", "PIL", "triton_taylorseer_client", "comfy", "folder_paths", *sys.stdlib_module_names}
    wrong = []
    for path, text in MODULES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                wrong += [(path.name, each.name) for each in node.names if each.name.split(".")[0] not in allowed]
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    assert node.module, f"{path.name}: a dotted name of the folder breaks `from . import`"
                elif node.module.split(".")[0] not in allowed:
                    wrong.append((path.name, node.module))
    assert not wrong


def test_python_3_10_reads_it():
    for path, text in MODULES.items():
        ast.parse(text, path.name, feature_version=(3, 10))


def test_no_module_is_long():
    assert not {path.name: text.count("\n") for path, text in MODULES.items() if text.count("\n") > 350}


def test_only_one_module_imports_comfyui():
    importing = [
        path.name for path, text in MODULES.items() if re.search(r"^(import|from) (comfy|folder_paths)", text, re.M)
    ]
    assert importing == ["host.py"]


def test_the_registry_finds_what_it_asks_for():
    """docs.comfy.org/registry/specifications."""
    about = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9]|[-_.](?=[A-Za-z0-9]))*", about["project"]["name"])
    assert "comfyui" not in about["project"]["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["project"]["version"])
    assert (PACK / about["project"]["license"]["file"]).read_text().lstrip().startswith("Apache License")
    assert about["project"]["requires-python"] == ">=3.10"
    assert about["tool"]["comfy"]["PublisherId"]
    assert (PACK / "requirements.txt").read_text().split() == ["triton-taylorseer-client"]


def test_the_stand_in_loads_only_folders_that_export_nodes(tmp_path):
    place = tmp_path / "custom_nodes" / "empty-one"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    with pytest.raises(FailedToLoad), loaded(place, {}):
        pass
