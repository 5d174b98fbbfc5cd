"""What of ComfyUI these nodes call; everything else of it calls them.

Where each name is told of:

- `folder_paths`, the output folder: docs.comfy.org/custom-nodes/backend/datatypes and
  /development/comfyui-server/startup-flags (`--output-directory`, `--disable-metadata`). The names of the function and
  of the flag in Python are common use, told by none of these pages.
- `InterruptProcessingException`, which ends a run: docs.comfy.org/development/comfyui-server/comms_messages.
- `comfy.utils.ProgressBar`: docs.comfy.org/changelog. How it is called, that its previews are ("JPEG", image, longest
  side), and the function that raises that exception, stands in public issues alone (snicolast/ComfyUI-Ovi 32,
  Chaoses-Ib/ComfyScript 36).
"""

from __future__ import annotations

from pathlib import Path

import comfy.model_management  # type: ignore[import-not-found]
import comfy.utils  # type: ignore[import-not-found]
import folder_paths  # type: ignore[import-not-found]
from comfy.cli_args import args  # type: ignore[import-not-found]
from PIL import Image

_PREVIEW_SIDE = 512  # pixels; ComfyUI's own default


class ProgressBar:
    """The bar of the node that runs in this thread.

    Args:
        total: of the steps, as far as it is known.
    """

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)

    def show(self, value: int, total: int, preview: Image.Image | None) -> None:
        """Shows that `value` of `total` steps are done, and a preview if there is one."""
        self._bar.update_absolute(value, total, None if preview is None else ("JPEG", preview, _PREVIEW_SIDE))


def raise_if_interrupted() -> None:
    """Raises ComfyUI's own exception if the run is to be stopped."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def output_folder() -> Path:
    """Where saved pictures go."""
    return Path(folder_paths.get_output_directory())


def saves_metadata() -> bool:
    """Whether files tell how they were made; `--disable-metadata` turns that off."""
    return not args.disable_metadata
