"""Plain inference: HunyuanVideo-1.5 of 480p, text to video."""

from plugin.triton_model import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
