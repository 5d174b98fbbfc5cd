"""ComfyUI nodes that have pictures and videos made by triton-taylorseer.

ComfyUI imports this folder and reads the two mappings (docs.comfy.org/custom-nodes/backend/lifecycle).
"""

import os

from .known import Known
from .picture_nodes import ImageToImage, Inpaint, TextToImage
from .save_node import SaveImage
from .server_nodes import Cache, ModelLimits, Server
from .settings import Settings
from .video_nodes import ImageToVideo, TextToVideo

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

_KNOWN = Known(Settings.of(os.environ))
_NODES = {
    "TritonTaylorSeerServer": (Server, "Server (triton-taylorseer)"),
    "TritonTaylorSeerCache": (Cache, "Cache Settings (triton-taylorseer)"),
    "TritonTaylorSeerTextToImage": (TextToImage, "Text to Image (triton-taylorseer)"),
    "TritonTaylorSeerImageToImage": (ImageToImage, "Image to Image (triton-taylorseer)"),
    "TritonTaylorSeerInpaint": (Inpaint, "Inpaint (triton-taylorseer)"),
    "TritonTaylorSeerTextToVideo": (TextToVideo, "Text to Video (triton-taylorseer)"),
    "TritonTaylorSeerImageToVideo": (ImageToVideo, "Image to Video (triton-taylorseer)"),
    "TritonTaylorSeerModelLimits": (ModelLimits, "Model Limits (triton-taylorseer)"),
    "TritonTaylorSeerSaveImage": (SaveImage, "Save Image (triton-taylorseer)"),
}

NODE_CLASS_MAPPINGS = {name: type(name, (node,), {"known": _KNOWN}) for name, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in _NODES.items()}
