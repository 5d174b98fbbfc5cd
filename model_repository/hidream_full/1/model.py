"""Plain inference: HiDream-I1-Full, text to picture."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
