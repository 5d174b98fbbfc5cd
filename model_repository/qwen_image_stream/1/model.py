"""Qwen-Image, text to picture, decoupled."""

from plugin.triton_model import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
