"""Plain inference: Qwen-Image-Edit-2509, which edits one picture or several."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
