"""Plain inference on the emoji model."""

from plugin.triton_model import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
