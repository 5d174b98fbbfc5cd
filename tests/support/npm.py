"""Packages of npm for tests, installed from their lock files, and programs that use them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

OLDEST_NODE = 20  # packages of today ask for 22, and work with Debian's


def installed(source: Path, folder: Path) -> Path:
    """A folder in which the packages of a lock file are installed; the test skips where npm is not.

    Args:
        source: has package.json and package-lock.json.
        folder: is made.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed (Debian: apt-get install npm)")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node is {version.strip()}, must be {OLDEST_NODE} or later")
    shutil.copytree(source, folder)
    done = subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def told_by(package: Path, program: str, *arguments: str) -> Any:
    """The JSON that a program writes.

    Args:
        package: a folder from `installed`.
        program: JavaScript with imports.
        arguments: of its command line.
    """
    path = package / "program.mjs"
    path.write_text(program)
    ran = subprocess.run(["node", str(path), *arguments], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def check_pinned(source: Path, *names: str) -> None:
    """Checks that packages are locked to the versions that package.json has, by their content, of no named registry."""
    project, lock = (json.loads((source / f"package{part}.json").read_text()) for part in ("", "-lock"))
    assert lock["packages"][""]["dependencies"] == project["dependencies"]
    for name in names:
        entry = lock["packages"][f"node_modules/{name}"]
        assert entry["version"] == project["dependencies"][name]
        assert entry["integrity"].startswith("sha512-")
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
