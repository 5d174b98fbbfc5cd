"""Plain inference: Qwen-Image-Edit-2509, which edits one picture or several."""

from plugin.triton_model import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
