"""Files with a prompt, or a request, on each line."""

from __future__ import annotations

import codecs
from pathlib import Path


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file with their numbers, from 1, without empty lines and comments, which begin with #.

    Lines end where text files end them (LF, CRLF or CR): other separators of Unicode, as U+2028, are part of a prompt.
    A byte order mark is left out.

    Args:
        path: of the file, in UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is not UTF-8; the message names it.
    """
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    lines = [(number, _decoded(path, number, line)) for number, line in enumerate(content.splitlines(), start=1)]
    return [(number, text) for number, text in lines if text and not text.startswith("#")]


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number} is not UTF-8 at byte {error.start}: save the file as UTF-8") from None
