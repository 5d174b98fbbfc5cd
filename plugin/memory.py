"""The main memory of this process: how much there is of it, and giving what was freed back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import psutil


def resident_bytes() -> int:
    """Bytes of main memory that this process has now, mapped files that it has read among them."""
    return psutil.Process().memory_info().rss


def give_back() -> None:
    """Gives freed memory back to the system: glibc keeps what lies between pieces in use, until it is told to trim.

    Does nothing with another C library.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
