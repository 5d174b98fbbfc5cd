"""FLUX.2-dev, which makes and edits pictures, decoupled."""

from triton_taylorseer import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
