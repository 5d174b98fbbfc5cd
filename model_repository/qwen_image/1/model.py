"""Plain inference: Qwen-Image, text to picture."""

from plugin.triton_model import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
