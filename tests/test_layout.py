"""The house: what may import what, and how large files and functions are. Each check lists all that breaks it."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from tests.support.paths import ROOT

# DESIGN's list: each imports only from those above it. The nouns, the modules of plugin/ itself, are one layer.
ROOMS = (
    "taylorseer",
    "nouns",
    "families",
    "engines",
    "denoising",
    "serving",
    "building",
    "ops",
    "triton_model",
    "cli",
)
# Rooms that stand on less than all above them.
NARROW = {"serving": {"nouns", "families", "taylorseer"}, "ops": {"nouns"}}
CLIENT = "triton_taylorseer_client"  # a package of its own, in clients/python
# What of ours each other folder may import; the command line of plugin/ may call the clients.
OTHERS = {
    CLIENT: {CLIENT},
    "clients": {"clients", CLIENT},
    "triton_taylorseer": {"triton_taylorseer"},
    "examples": {"triton_taylorseer"},
    "model_repository": {"triton_taylorseer"},
    "benchmarks": {"benchmarks", "plugin", "clients", CLIENT, "taylorseer", "training"},
    "training": {"training"},
}
DOOR = "plugin.pipeline"  # for users: it imports the denoising, and nothing inside the house imports it
TRITON = "triton_python_backend_utils"
ELSEWHERE = {"node_modules", "build", "comfyui"}  # ComfyUI imports its nodes by relative names
OURS = {"taylorseer", "plugin", "tests", *OTHERS}

LONGEST_FILE, LONGEST_FUNCTION, MEDIAN_FUNCTION = 350, 50, 6  # lines


@dataclass(frozen=True)
class Module:
    """A Python file of ours."""

    path: Path

    @property
    def name(self) -> str:
        """What it is imported by."""
        below = ROOT / "clients/python" if CLIENT in self.path.parts else ROOT
        parts = self.path.relative_to(below).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def top(self) -> str:
        return self.name.split(".")[0]

    @property
    def room(self) -> str:
        """Of a module of plugin/ or taylorseer/, its place in the list."""
        parts = self.path.relative_to(ROOT).parts
        return parts[1] if parts[0] == "plugin" and len(parts) > 2 else {"plugin": "nouns"}.get(parts[0], parts[0])

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> set[str]:
        """The modules that it imports anywhere in it, by their full names."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module, f"{self.name} has a relative import"
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in MODULES else node.module for name in names}
        return found

    @property
    def imports_of_ours(self) -> set[str]:
        return {name for name in self.imports if name.split(".")[0] in OURS}

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def modules_in(folder: str) -> dict[str, Module]:
    place = ROOT / "clients/python" / folder if folder == CLIENT else ROOT / folder
    modules = [Module(path) for path in sorted(place.rglob("*.py")) if not ELSEWHERE & {*path.parts}]
    return {module.name: module for module in modules}


MODULES: dict[str, Module] = {}
for _folder in sorted(OURS):
    MODULES |= modules_in(_folder)
PLUGIN = [module for module in MODULES.values() if module.top == "plugin"]
HOUSE = [module for module in MODULES.values() if module.top in ("plugin", "taylorseer")]


def room_of(name: str) -> str:
    """The room of a module that is imported, or the folder where it is not one of the house."""
    module = MODULES.get(name)
    return module.room if module in HOUSE and module is not None else name.split(".")[0]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return function.end_lineno - function.lineno + 1  # type: ignore[operator]


# What imports what


def test_each_room_imports_only_from_those_above_it():
    wrong = []
    for module in HOUSE:
        above = set(ROOMS[: ROOMS.index(module.room) + 1])
        allowed = NARROW.get(module.room, above) | {module.room}
        if module.name == DOOR:
            allowed = {"denoising"}
        if module.room == "cli":
            allowed |= {"clients", CLIENT}
        wrong += [f"{module.name} imports {name}" for name in module.imports_of_ours if room_of(name) not in allowed]
    assert not sorted(wrong)


def test_every_room_is_in_the_list():
    assert {module.room for module in HOUSE} == set(ROOMS)


def test_the_door_for_users_is_not_used_inside():
    assert not [module.name for module in HOUSE if DOOR in module.imports]


def test_other_folders_import_what_is_theirs_to_import():
    wrong = [
        f"{module.name} imports {name}"
        for module in MODULES.values()
        if module.top in OTHERS
        for name in module.imports_of_ours
        if name.split(".")[0] not in OTHERS[module.top]
    ]
    assert not sorted(wrong)


def test_only_its_room_imports_tritons_module():
    assert not [
        module.name
        for module in MODULES.values()
        if TRITON in module.imports and module.room != "triton_model" and module.top != "tests"
    ]


def test_the_algorithm_needs_torch_and_numpy_alone():
    """OpenAI's Triton is there where torch has a GPU."""
    wrong = [
        f"{module.name} imports {name}"
        for module in HOUSE
        if module.room == "taylorseer"
        for name in module.imports
        if name.split(".")[0] not in {"taylorseer", "torch", "numpy", "triton", *sys.stdlib_module_names}
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    remaining = {name: module.imports & MODULES.keys() - {name} for name, module in MODULES.items()}
    while leaves := {name for name, imports in remaining.items() if not imports & remaining.keys()}:
        remaining = {name: imports for name, imports in remaining.items() if name not in leaves}
    assert not {name: sorted(imports & remaining.keys()) for name, imports in remaining.items()}


def test_no_test_module_imports_another():
    wrong = [
        f"{module.name} imports {name}"
        for module in MODULES.values()
        if module.top == "tests"
        for name in module.imports_of_ours
        if name.split(".")[0] == "tests" and not name.startswith("tests.support")
    ]
    assert not wrong


# How large things are


def test_no_file_is_long():
    counts = {module.name: module.text.count("\n") for module in PLUGIN}
    assert not {name: lines for name, lines in counts.items() if lines > LONGEST_FILE}


def test_no_function_is_long():
    assert not {
        f"{module.name}.{function.name}": length(function)
        for module in PLUGIN
        for function in module.functions
        if length(function) > LONGEST_FUNCTION
    }


def test_most_functions_are_short():
    assert median(length(function) for module in PLUGIN for function in module.functions) <= MEDIAN_FUNCTION


# Names and words


def test_no_class_has_the_name_of_another():
    classes = [
        (node.name, module.name)
        for module in PLUGIN
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    ]
    counts = Counter(name for name, _ in classes)
    assert not sorted(f"{name} in {module}" for name, module in classes if counts[name] > 1)


def test_every_module_says_what_it_is():
    modules = [module for module in MODULES.values() if module.text]  # the folders of tests are empty packages
    assert not [module.name for module in modules if not ast.get_docstring(module.tree)]
