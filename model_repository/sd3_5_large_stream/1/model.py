"""Stable Diffusion 3.5 Large, text to picture, decoupled."""

from plugin.triton_model import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
