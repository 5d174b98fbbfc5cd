"""FLUX.2-klein-base-4B, which makes and edits pictures, decoupled."""

from triton_taylorseer import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
