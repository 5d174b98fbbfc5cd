"""Imports point one way: model_repository -> plugin -> taylorseer; Triton's module is imported in one file."""

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ALLOWED = {
    "taylorseer": {"taylorseer"},
    "plugin": {"plugin", "taylorseer", "clients", "benchmarks"},  # the last two: what the command line calls
    "clients": {"clients"},
    "model_repository": {"plugin"},
    "examples": {"plugin"},
}
OURS = {"taylorseer", "plugin", "clients", "benchmarks", "model_repository", "examples", "training", "tests"}
FILES = sorted(path.relative_to(ROOT) for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path):
    ours = {module.split(".")[0] for module in imports_of(path)} & OURS
    assert ours <= ALLOWED[path.parts[0]]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_the_triton_model_imports_tritons_module(path):
    assert ("triton_python_backend_utils" in imports_of(path)) == (path == Path("plugin/triton_model/stream.py"))


def test_only_the_command_line_looks_at_clients_and_benchmarks():
    users = {path for path in FILES if path.parts[0] == "plugin"} - {Path("plugin/cli/app.py")}
    assert not [path for path in users if {m.split(".")[0] for m in imports_of(path)} & {"clients", "benchmarks"}]


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "taylorseer"], ids=str)
def test_the_algorithm_needs_torch_and_numpy_alone(path):
    foreign = {module.split(".")[0] for module in imports_of(path)} - {"taylorseer", "torch", "numpy"}
    assert not foreign & {"diffusers", "transformers", "onnxruntime", "onnx", "tensorrt", "tritonclient"}
