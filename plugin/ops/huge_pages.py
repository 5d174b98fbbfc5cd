"""Large tensors in memory pages of 2 MiB on the CPU.

A tensor above 32 MiB gets new memory each time, which the kernel hands out page by page: with pages of 4 KiB that takes
several times as long as filling them. torch asks for large pages itself if THP_MEM_ALLOC_ENABLE is 1 in the environment
(c10/core/impl/alloc_cpu.cpp, torch 2.13.0), which it reads once, at its first allocation.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import MutableMapping

VARIABLE = "THP_MEM_ALLOC_ENABLE"

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MIB = 1 << 20

_log = logging.getLogger(__name__)


def ask_for_huge_pages(environ: MutableMapping[str, str]) -> None:
    """Makes torch put large tensors in large pages. Must be called before torch is imported.

    Does nothing if the environment already says otherwise, and has no effect if the kernel has no such pages
    (/sys/kernel/mm/transparent_hugepage/enabled is never).

    Args:
        environ: the environment of this process, which torch will read.
    """
    if environ.setdefault(VARIABLE, "1") != "1":
        return
    # torch then asks for aligned memory, from which glibc does not learn, as it otherwise does, to keep blocks of up to
    # 32 MiB for the next allocation. With these thresholds it keeps them.
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)
    except (OSError, AttributeError) as error:
        _log.info("malloc keeps its thresholds: %s", error)  # another C library than glibc
