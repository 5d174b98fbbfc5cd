"""Plain inference: FLUX.2-klein-base-4B, which makes and edits pictures."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
