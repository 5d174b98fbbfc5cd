"""HunyuanVideo-1.5 of 480p, text to video, decoupled."""

from plugin.triton_model import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
