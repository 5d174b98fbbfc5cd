"""Qwen-Image-Edit-2509, which edits one picture or several, decoupled."""

from triton_taylorseer import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
