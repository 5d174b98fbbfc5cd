"""Plain inference: HiDream-I1-Full, text to picture."""

from plugin.triton_model import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
