"""What runs inside Triton's Python backend; the only folder that imports its module.

`from plugin.triton_model import StreamModel` loads what that model needs and no more: the front never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODELS = {"StreamModel": "stream", "FrontModel": "stream", "BlockStackModel": "stream"}


def __getattr__(name: str) -> Any:
    if name not in _MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODELS[name]}"), name)
