"""Plain inference: FLUX.2-dev, which makes and edits pictures."""

from plugin.triton_model import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
