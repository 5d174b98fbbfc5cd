"""Plain inference: FLUX.2-dev, which makes and edits pictures."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
