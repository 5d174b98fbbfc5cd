"""Finds the tritonserver to run: the one on PATH (a container's), or else the one in the nvidia-pytriton wheel."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from plugin.paths import default_cache_dir
from plugin.sealed import damage, seal

_STUB = "triton_python_backend_stub"


class ServerError(Exception):
    """The server cannot be started or has died; the message says why and what to do."""


@dataclass(frozen=True)
class Installation:
    """A tritonserver that was found: its binary, its backends (None for its own), and the environment it needs."""

    binary: Path
    backends: Path | None
    environment: dict[str, str]


def find_installation() -> Installation:
    """The tritonserver to run.

    Raises:
        ServerError: none is installed, or the wheel has none for this Python version.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return Installation(Path(on_path), None, {})
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            "tritonserver is not on PATH and the wheel that ships one is not installed: "
            "run in NVIDIA's Triton container, or `pip install --no-deps nvidia-pytriton==0.7.0`"
        )
    package = Path(spec.submodule_search_locations[0])
    return Installation(package / "tritonserver/bin/tritonserver", _prepare_backends(package), _environment(package))


def _environment(package: Path) -> dict[str, str]:
    """What the wheel's server needs to find its libraries and this Python."""
    libraries = [str(package.parent / "nvidia_pytriton.libs")]
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        # The stub must load the libpython of this interpreter, not the system's.
        libraries.insert(0, sysconfig.get_config_var("LIBDIR"))
    libraries.append(os.environ.get("LD_LIBRARY_PATH", ""))
    return {
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }


def _prepare_backends(package: Path) -> Path:
    """A writable copy of the wheel's Python backend with this Python's stub in it."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    source = package / "tritonserver"
    stub = source / "python_backend_stubs" / python / _STUB
    if not stub.is_file():
        known = sorted(path.name for path in (source / "python_backend_stubs").iterdir())
        raise ServerError(f"the wheel's server has no stub for Python {python}, must be one of: {', '.join(known)}")
    target = default_cache_dir() / f"backends-{version('nvidia-pytriton')}-py{python}"
    if damage(target) is not None:
        try:
            _copy_backends(source / "backends" / "python", stub, target)
        except OSError as error:
            raise ServerError(
                f"the server's backends cannot be copied to {target} ({error.strerror}): "
                "name a writable folder in TRITON_TAYLORSEER_CACHE"
            ) from error
    return target


def _copy_backends(backend: Path, stub: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        shutil.copytree(backend, scratch / "python")
        shutil.copy(stub, scratch / "python" / _STUB)
        (scratch / "python" / _STUB).chmod(0o755)
        seal(scratch)
        if target.exists() and damage(target) is not None:
            target.rename(scratch.with_name(f"{scratch.name}.damaged"))
        scratch.rename(target)
    except OSError:
        if damage(target) is not None:  # else another process was faster
            raise
    finally:
        for left in scratch.parent.glob(f"{scratch.name}*"):
            shutil.rmtree(left, ignore_errors=True)
