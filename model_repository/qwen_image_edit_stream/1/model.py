"""Qwen-Image-Edit-2509, which edits one picture or several, decoupled."""

from plugin.triton_model import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
