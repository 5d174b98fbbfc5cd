"""DiT-XL/2 of ImageNet's 1,000 classes, 256 x 256, decoupled."""

from triton_taylorseer import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
