"""Saves pictures with all that made them in the file.

PNG text: `prompt` and `workflow` as ComfyUI's own Save Image has them
(docs.comfy.org/development/api-development/workflow-metadata), and `triton-taylorseer`, JSON in UTF-8 with `model`,
`fields` and the server's `report`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from triton_taylorseer_client import InvalidArgument
from triton_taylorseer_client.shown import shown

from .host import output_folder, saves_metadata
from .node import Inputs, Node
from .pixels import pictures_of

KEYWORD = "triton-taylorseer"


class SaveImage(Node):
    """Writes a PNG for each picture into ComfyUI's output folder."""

    DESCRIPTION = "Saves pictures as PNG, with the workflow, the settings and the server's report in the file."
    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        prefix = "The beginning of each file's name; with / in it, in folders below the output folder."
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures to save."}),
                "filename_prefix": ("STRING", {"default": "triton-taylorseer", "tooltip": prefix}),
            },
            "optional": {"report": ("STRING", {"forceInput": True, "tooltip": "Of the node that made the pictures."})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},  # type: ignore[dict-item]
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: Any = None) -> bool | str:  # noqa: N802
        return True if filename_prefix is None or _is_below(filename_prefix) else _wrong(filename_prefix)

    def save(
        self,
        images: torch.Tensor,
        filename_prefix: str,
        report: str | None = None,
        prompt: Mapping[str, Any] | None = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        if not _is_below(filename_prefix):
            raise InvalidArgument(_wrong(filename_prefix))
        pictures = pictures_of("images", images)
        records = _records(report, len(pictures))
        path = PurePosixPath(filename_prefix.replace("\\", "/"))
        folder = output_folder() / path.parent
        folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for picture, record in zip(pictures, records, strict=True):
            texts = _texts(record, prompt, extra_pnginfo) if saves_metadata() else PngInfo()
            name = _write(folder, path.name, Image.fromarray(picture), texts)
            subfolder = "" if path.parent == PurePosixPath(".") else str(path.parent)
            saved.append({"filename": name, "subfolder": subfolder, "type": "output"})
        return {"ui": {"images": saved}}


def _is_below(prefix: Any) -> bool:
    """Whether a prefix stays in the output folder, on each system."""
    if not isinstance(prefix, str) or re.search(r'[\x00-\x1f:*?"<>|]', prefix):
        return False
    path = PurePosixPath(prefix.replace("\\", "/"))
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def _wrong(prefix: Any) -> str:
    return f"filename_prefix is {shown(prefix)}, must be a name, perhaps with folders below the output folder before it"


def _records(report: str | None, count: int) -> list[dict[str, Any] | None]:
    """The record of each picture; one alone is of all of them, as of the frames of a video."""
    if report is None:
        return [None] * count
    try:
        records = json.loads(report)
    except ValueError:
        records = None
    if not isinstance(records, list) or len(records) not in (1, count):
        raise InvalidArgument(f"report is {shown(report)}, must be that of the node that made these {count} pictures")
    return records * (count // len(records))


def _texts(record: Any, prompt: Mapping[str, Any] | None, extra_pnginfo: Mapping[str, Any] | None) -> PngInfo:
    texts = PngInfo()
    if prompt is not None:
        texts.add_text("prompt", json.dumps(prompt))
    for name, value in (extra_pnginfo or {}).items():
        texts.add_text(name, json.dumps(value))
    if record is not None:
        texts.add_itxt(KEYWORD, json.dumps(record, ensure_ascii=False))
    return texts


def _write(folder: Path, name: str, picture: Image.Image, texts: PngInfo) -> str:
    """Writes a file of the next free number, and never over another."""
    taken = (re.fullmatch(rf"{re.escape(name)}_(\d+)_\.png", each.name) for each in folder.iterdir())
    number = max((int(match[1]) for match in taken if match), default=0)
    while True:
        number += 1
        path = folder / f"{name}_{number:05}_.png"
        try:
            with path.open("xb") as file:
                picture.save(file, "png", pnginfo=texts)
            return path.name
        except FileExistsError:
            continue
