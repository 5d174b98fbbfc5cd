"""HiDream-I1-Full, text to picture, decoupled."""

from triton_taylorseer import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
