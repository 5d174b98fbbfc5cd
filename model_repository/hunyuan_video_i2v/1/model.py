"""Plain inference: HunyuanVideo, text to video."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
