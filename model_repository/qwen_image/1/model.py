"""Plain inference: Qwen-Image, text to picture."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
