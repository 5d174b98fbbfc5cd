"""The folders and files of the engine cache: each is written as a whole, by one process at a time."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from plugin.sealed import damage

_log = logging.getLogger(__name__)


class CannotWrite(OSError):
    """A folder of the cache cannot be written; the message says what helps."""


def build_once(
    folder: Path,
    is_whole: Callable[[], bool],
    build: Callable[[Path], None],
    *,
    setting: str = "TRITON_TAYLORSEER_CACHE",
) -> None:
    """Fills a folder of the cache unless it is whole.

    It is safe for two processes to do this at once: one of them fills a folder beside it and renames that into place,
    the other waits. A damaged folder is said, and set aside under its name with `.damaged`, the latest one of each.

    Args:
        folder: what to fill.
        is_whole: whether the folder can be used as it is.
        build: fills the folder that it is given. If it raises, nothing of it stays.
        setting: the environment variable that names the folder, for the message of an error.

    Raises:
        CannotWrite: the folder cannot be written.
    """
    if is_whole():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if is_whole():
                return
            _set_aside(folder)
            scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
            try:
                build(scratch)
                os.replace(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except CannotWrite:  # another folder, which `build` itself fills
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotWrite(
            f"no engine can be built in {folder.parent} ({reason}): make room there and let this user write there, or "
            f"name another folder with {setting}"
        ) from error


def _set_aside(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    aside = folder.with_name(f"{folder.name}.damaged")
    _log.warning("%s is damaged (%s): it is set aside as %s and built again", folder, damage(folder), aside.name)
    shutil.rmtree(aside, ignore_errors=True)
    aside.unlink(missing_ok=True)
    os.replace(folder, aside)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in one step, so that other processes never read half of it."""
    scratch = path.with_name(f"{path.name}.{time.monotonic_ns()}")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)  # on a full disk, part of it is there
