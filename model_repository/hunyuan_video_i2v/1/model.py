"""Plain inference: HunyuanVideo, text to video."""

from plugin.triton_model import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
