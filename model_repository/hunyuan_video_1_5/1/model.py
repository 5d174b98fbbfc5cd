"""Plain inference: HunyuanVideo-1.5 of 480p, text to video."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
