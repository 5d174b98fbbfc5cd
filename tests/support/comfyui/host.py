"""The modules of ComfyUI that nodes import, and what they do to ComfyUI.

- `folder_paths`: custom-nodes/backend/server_overview and /datatypes use it; `--output-directory` and
  `--disable-metadata` are flags of development/comfyui-server/startup-flags.
- `comfy.model_management`: a run "is stopped by a node raising InterruptProcessingException"
  (development/comfyui-server/comms_messages). No page has the function that raises it; its name, and that a progress
  bar calls it too, stand in a traceback in the public issue snicolast/ComfyUI-Ovi 32. That it clears the flag is a
  guess.
- `comfy.utils.ProgressBar`: named in the changelog's pages. How it is called is from the same traceback; that a preview
  is ("JPEG", image, longest side), from the public issue Chaoses-Ib/ComfyScript 36.
- A progress message has the node that runs (comms_messages: `progress`), "determined from the executing context"
  (custom-nodes/v3_migration), so a bar that is moved from another thread is refused here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from PIL import Image


class InterruptProcessingException(Exception):
    """Ends a run that is to be stopped."""


@dataclass(frozen=True)
class Progress:
    """What a progress bar showed: of which node, and a copy of its preview."""

    node: str
    value: int
    total: int
    preview: Image.Image | None


@dataclass
class Host:
    """ComfyUI as far as nodes can reach it.

    Attributes:
        folder: with `input` and `output` below it.
        disable_metadata: the flag of that name.
        executing: the node that runs, and its thread; None while none does.
        progress: all that was shown.
    """

    folder: Path
    disable_metadata: bool = False
    executing: tuple[str, int] | None = None
    progress: list[Progress] = field(default_factory=list)
    _interrupted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        for folder in (self.input, self.output):
            folder.mkdir(parents=True)

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def interrupt(self) -> None:
        """What the button does (route `/interrupt` of development/comfyui-server/comms_routes)."""
        self._interrupted.set()

    def begin(self) -> None:
        """An interrupt is of the run in which it comes."""
        self._interrupted.clear()

    def raise_if_interrupted(self) -> None:
        if self._interrupted.is_set():
            self._interrupted.clear()
            raise InterruptProcessingException

    def show(self, value: int, total: int, preview: Any) -> None:
        self.raise_if_interrupted()
        assert self.executing is not None, "no node runs"
        node, thread = self.executing
        assert threading.get_ident() == thread, "a progress bar is of the thread of its node"
        image = None
        if preview is not None:
            kind, image, side = preview
            assert kind == "JPEG"
            assert isinstance(image, Image.Image)
            assert side is None or side > 0
        self.progress.append(Progress(node, value, total, image and image.copy()))


@contextmanager
def importable(host: Host) -> Iterator[None]:
    """The modules, for the block."""

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total, self.current = total, 0

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            self.total = self.total if total is None else total
            self.current = min(value, self.total)
            host.show(self.current, self.total, preview)

        def update(self, value: int) -> None:
            self.update_absolute(self.current + value)

    modules = {
        "comfy": _module("comfy"),
        "comfy.utils": _module("comfy.utils", ProgressBar=ProgressBar),
        "comfy.cli_args": _module("comfy.cli_args", args=_Flags(host)),
        "comfy.model_management": _module(
            "comfy.model_management",
            InterruptProcessingException=InterruptProcessingException,
            throw_exception_if_processing_interrupted=host.raise_if_interrupted,
        ),
        "folder_paths": _module(
            "folder_paths",
            get_output_directory=lambda: str(host.output),
            get_input_directory=lambda: str(host.input),
        ),
    }
    for name in ("utils", "cli_args", "model_management"):
        setattr(modules["comfy"], name, modules[f"comfy.{name}"])
    with patch.dict(sys.modules, modules):
        yield


class _Flags(SimpleNamespace):
    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host

    @property
    def disable_metadata(self) -> bool:
        return self._host.disable_metadata


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module
