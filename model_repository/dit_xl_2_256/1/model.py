"""Plain inference: DiT-XL/2 of ImageNet's 1,000 classes, 256 x 256."""

from triton_taylorseer import FrontModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
