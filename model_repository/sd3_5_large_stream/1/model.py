"""Stable Diffusion 3.5 Large, text to picture, decoupled."""

from triton_taylorseer import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
