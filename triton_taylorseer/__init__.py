"""What an installation of the server is imported by: the models that Triton loads, and the door for Python users.

    from triton_taylorseer import StreamModel as TritonPythonModel
    from triton_taylorseer import PipelineHost

The folders `plugin`, `clients` and `benchmarks` are imported by these names, which are too general for the top of
site-packages: other people's would hide ours, or ours theirs. So the wheel keeps them in `rooms/` beside this file,
where no other program finds them, as Debian's Python policy has it for the private modules of an application. Importing
this package puts that folder first on the path of the process. A checkout has no `rooms/`: its folders are on the path.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_ROOMS = Path(__file__).parent / "rooms"
_PLACES = {
    "BlockStackModel": "plugin.triton_model",
    "FrontModel": "plugin.triton_model",
    "PipelineHost": "plugin.pipeline",
    "StreamModel": "plugin.triton_model",
}

__all__ = ["BlockStackModel", "FrontModel", "PipelineHost", "StreamModel", "main"]


def main() -> None:
    """The command `triton-taylorseer`."""
    import_module("plugin.cli.app").app()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def _open_rooms() -> None:
    """Puts the private folder, if there is one, where its modules are found first.

    Raises:
        ImportError: the process has already imported another module of one of their names.
    """
    if not _ROOMS.is_dir():
        return
    sys.path.insert(0, str(_ROOMS))
    for folder in _ROOMS.iterdir():
        other = getattr(sys.modules.get(folder.name), "__file__", None)
        if other and not Path(other).is_relative_to(_ROOMS):
            raise ImportError(
                f"a module named {folder.name} was imported from {other}, and triton_taylorseer has one of its own: "
                "use it in a process without the other"
            )


_open_rooms()
