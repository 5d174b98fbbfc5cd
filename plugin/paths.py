"""Where things are: the shipped model repository, the cache of compiled things, the lock files of running servers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of this package
REPOSITORY = ROOT / "model_repository"


def python_path() -> str:
    """`PYTHONPATH` for a process that imports this package: its folder, before what the environment names."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def lock_file(server_pid: int, name: str) -> Path:
    """A file by which the processes of one Triton server take turns at something; it goes with the server.

    Args:
        server_pid: of the tritonserver.
        name: of what they take turns at; "*" makes a pattern of all.
    """
    return Path(tempfile.gettempdir()) / f"triton-taylorseer-{server_pid}-{name}.lock"


def default_cache_dir() -> Path:
    """`$TRITON_TAYLORSEER_CACHE`, else `~/.cache/triton-taylorseer`."""
    return Path(os.environ.get("TRITON_TAYLORSEER_CACHE") or Path.home() / ".cache" / "triton-taylorseer")


def exports_dir() -> Path | None:
    """`$TRITON_TAYLORSEER_EXPORTS`, where exported block stacks are kept; None if it is not set: none is kept."""
    folder = os.environ.get("TRITON_TAYLORSEER_EXPORTS")
    return Path(folder) if folder else None
