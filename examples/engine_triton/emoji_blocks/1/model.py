"""The block stack of the emoji model, for engine triton."""

from triton_taylorseer import BlockStackModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
