"""The nodes of ComfyUI itself that the example workflows use, as their pages below built-in-nodes describe them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps

from tests.support.comfyui.host import Host


@dataclass(frozen=True)
class Video:
    """A VIDEO; what it is in ComfyUI no page says."""

    frames: torch.Tensor
    fps: float


class LoadImage:
    """built-in-nodes/LoadImage; custom-nodes/backend/images_and_masks: the mask is alpha inverted, and of a picture
    without alpha 64 x 64. That it has zeros then is not said there.
    """

    host: ClassVar[Host]
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": (sorted(each.name for each in cls.host.input.iterdir()) or ["none"], {})}}

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:  # noqa: N802
        return hashlib.sha256((cls.host.input / image).read_bytes()).hexdigest()

    def load(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(self.host.input / image) as opened:
            upright = ImageOps.exif_transpose(opened)
            pixels = np.array(upright.convert("RGB")).astype(np.float32) / 255.0
            mask = torch.zeros((1, 64, 64))
            if "A" in upright.getbands():
                mask = 1.0 - torch.from_numpy(np.array(upright.getchannel("A")).astype(np.float32) / 255.0)[None,]
        return torch.from_numpy(pixels)[None,], mask


class PreviewImage:
    """built-in-nodes/PreviewImage; the files are left out."""

    RETURN_TYPES = ()
    FUNCTION = "preview"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",)}}

    def preview(self, images: torch.Tensor) -> dict[str, Any]:
        assert images.ndim == 4
        return {"ui": {"images": [{"type": "temp"}] * len(images)}}


class PreviewAny:
    """built-in-nodes/PreviewAny: shows anything as text."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"source": ("*", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> bool:  # noqa: N802
        return True

    def show(self, source: Any) -> dict[str, Any]:
        text = source if isinstance(source, str) else json.dumps(source)
        return {"ui": {"text": [text]}, "result": (text,)}


class CreateVideo:
    """built-in-nodes/CreateVideo."""

    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "create"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        fps = ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0})
        return {"required": {"images": ("IMAGE",), "fps": fps}, "optional": {"audio": ("AUDIO",)}}

    def create(self, images: torch.Tensor, fps: float, audio: Any = None) -> tuple[Video]:
        assert 1.0 <= fps <= 120.0
        return (Video(images, fps),)


class SaveVideo:
    """built-in-nodes/SaveVideo; the file is left out."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "video": ("VIDEO",),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI"}),
                "format": (["auto", "mp4", "webm", "mkv", "gif"], {}),
                "codec": (["auto", "h264", "h265", "vp9", "av1", "prores"], {}),
            }
        }

    def save(self, video: Video, filename_prefix: str, format: str, codec: str) -> dict[str, Any]:
        assert isinstance(video, Video)
        return {"ui": {"videos": [video]}}


class Given:
    """Not of ComfyUI: hands on a value that a test puts into `values`, for what other nodes would make."""

    values: ClassVar[dict[str, Any]]
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"name": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, name: str) -> int:  # noqa: N802
        return id(cls.values[name])

    def give(self, name: str) -> tuple[Any]:
        return (self.values[name],)


def given_nodes() -> dict[str, type]:
    """`Given` for each type, as GivenIMAGE."""
    values: dict[str, Any] = {}
    return {
        f"Given{kind}": type(f"Given{kind}", (Given,), {"RETURN_TYPES": (kind,), "values": values})
        for kind in ("IMAGE", "MASK", "STRING", "INT", "FLOAT")
    }


def builtin_nodes(host: Host) -> dict[str, type]:
    """These nodes, by their names."""
    load = type("LoadImage", (LoadImage,), {"host": host})
    others = (PreviewImage, PreviewAny, CreateVideo, SaveVideo)
    return {"LoadImage": load, **given_nodes(), **{each.__name__: each for each in others}}
