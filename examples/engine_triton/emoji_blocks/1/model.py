"""The block stack of the emoji model, for engine triton."""

from plugin.triton_model import BlockStackModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
