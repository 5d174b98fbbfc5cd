"""DiT-XL/2 of ImageNet's 1,000 classes, 256 x 256, decoupled."""

from plugin.triton_model import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
