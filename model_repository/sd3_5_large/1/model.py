"""Plain inference: Stable Diffusion 3.5 Large, text to picture."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
