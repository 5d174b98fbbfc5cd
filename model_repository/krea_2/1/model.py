"""Plain inference: Krea 2, text to picture."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
