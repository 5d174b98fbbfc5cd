"""FLUX.2-klein-base-4B, which makes and edits pictures, decoupled."""

from plugin.triton_model import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
