"""Where compiled things are kept."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """`$TRITON_TAYLORSEER_CACHE`, else `~/.cache/triton-taylorseer`."""
    return Path(os.environ.get("TRITON_TAYLORSEER_CACHE") or Path.home() / ".cache" / "triton-taylorseer")
