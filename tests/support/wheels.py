"""The wheels of the server and of the Python client, built from what the image copies, and environments for them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from tests.support.paths import ROOT

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")  # that the client is for
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "results", "build", "*.egg-info", "node_modules", "*.so")


def build(folder: Path) -> tuple[Path, Path]:
    """The wheels of the server and the client, built in a folder as the Dockerfile builds them."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    (stage, _) = re.split(r"^RUN .* pip wheel", dockerfile, maxsplit=1, flags=re.MULTILINE)
    for source in re.findall(r"[\w.]+", " ".join(re.findall(r"^COPY (.+) [^/\s]\S*$", stage, re.MULTILINE))):
        if (ROOT / source).is_file():
            shutil.copy(ROOT / source, folder)
        else:
            shutil.copytree(ROOT / source, folder / source, ignore=_LEFT_OUT)
    (places,) = re.findall(r"pip wheel .*--wheel-dir /wheel (.+)$", dockerfile, re.MULTILINE)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels"]
    built = subprocess.run([*command, *places.split()], cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (server,) = (folder / "wheels").glob("triton_taylorseer-*.whl")
    (client,) = (folder / "wheels").glob("triton_taylorseer_client-*.whl")
    return server, client


def top_level(wheel: Path) -> set[str]:
    """What the wheel puts into site-packages, without its own record."""
    with ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    return {name for name in names if not name.endswith(".dist-info")}


@dataclass(frozen=True)
class Environment:
    """A virtual environment with nothing in it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def site_packages(self) -> Path:
        (found,) = (self.folder / "lib").glob("python3*/site-packages")
        return found

    @property
    def mb(self) -> float:
        """Megabytes in site-packages."""
        return sum(file.stat().st_size for file in self.site_packages.rglob("*") if file.is_file()) / 1e6

    def install(self, *wanted: object) -> None:
        run([self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])


def pythons() -> dict[str, str]:
    """Version -> command of each Python that the client is for and this machine has, on its path or by pyenv."""
    by_pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    folders = [*by_pyenv.glob("3.*/bin"), *os.environ["PATH"].split(os.pathsep)]
    path = os.pathsep.join(str(folder) for folder in folders if Path(folder).name != "shims")  # which may lead nowhere
    found = {version: shutil.which(f"python{version}", path=path) for version in PYTHONS}
    own = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    return {version: command for version, command in found.items() if command} | own


def environment(folder: Path, python: str = sys.executable) -> Environment:
    """A bare one, of some Python."""
    if python == sys.executable:
        venv.create(folder, with_pip=True)
    else:
        run([python, "-m", "venv", folder])
    return Environment(folder)


def run(command: list[object], **options: object) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
