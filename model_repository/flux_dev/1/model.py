"""Plain inference: FLUX.1-dev, text to picture."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
