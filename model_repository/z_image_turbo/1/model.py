"""Plain inference: Z-Image-Turbo, text to picture."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
