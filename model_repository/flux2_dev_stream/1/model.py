"""FLUX.2-dev, which makes and edits pictures, decoupled."""

from plugin.triton_model import StreamModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
