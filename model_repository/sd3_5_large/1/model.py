"""Plain inference: Stable Diffusion 3.5 Large, text to picture."""

from plugin.triton_model import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
