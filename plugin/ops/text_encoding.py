"""Text files as UTF-8, in Triton's Python processes.

Triton starts Python in the C locale, in which text is ASCII unless a file is opened with another encoding. torch's code
generator (2.13) opens its own templates, which are UTF-8, without one: its import then fails half-way, and once it has,
no later one finds all of it.
"""

from __future__ import annotations

import locale
from contextlib import suppress


def read_text_as_utf8() -> None:
    """Has this process read and write text as UTF-8. Must be called before torch is imported.

    Does nothing where the locale's encoding is another one than ASCII, or the system has no locale C.UTF-8.
    """
    if locale.getpreferredencoding(False) == "ANSI_X3.4-1968":
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
