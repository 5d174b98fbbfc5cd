"""What runs inside Triton's Python backend; the only folder that imports its module.

In reading order: `stream` (what Triton calls), `runner` (accepts and runs requests), `inputs` and `intake` (how they
come in), `residency` (whether the model is in memory), `job` (one request), `answers` (what is sent, and when the model
has failed), `settings`, `loading`, `front` (the plain model), `block_stack`, `stack_runner` and `model_call` (engine
triton), `responses` (the wire), `reporting`, `metrics`, `tracing`, `instance`, `backend` (Triton's objects).

`from triton_taylorseer import StreamModel` leads here. It imports what that model needs and no more: the plain model's
process never loads torch, and neither does the one in which Triton asks a model for its tensors.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from plugin.ops.huge_pages import ask_for_huge_pages
from plugin.ops.text_encoding import read_text_as_utf8
from plugin.quiet import quieten_quantizers

_FILES = {"StreamModel": "stream", "FrontModel": "front", "BlockStackModel": "block_stack"}

__all__ = ["BlockStackModel", "FrontModel", "StreamModel"]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    ask_for_huge_pages(os.environ)  # before anything imports torch, which reads it once
    read_text_as_utf8()
    quieten_quantizers()
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
