"""HunyuanVideo-1.5 of 480p, text to video, decoupled."""

from triton_taylorseer import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
