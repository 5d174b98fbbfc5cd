"""Wan2.1, text to video, decoupled."""

from triton_taylorseer import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
