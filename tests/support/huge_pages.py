"""Whether memory is asked to lie in large pages, as the kernel tells it."""

from __future__ import annotations

import re
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def kernel_tells() -> bool:
    """Whether the kernel has large pages and tells which memory asked for them."""
    try:
        return _HUGE_PAGES.exists() and "VmFlags" in _SMAPS.read_text()
    except OSError:
        return False


def asks_for_huge_pages(address: int) -> bool:
    """Whether the mapping of this process that holds an address has MADV_HUGEPAGE (its flag hg, proc(5))."""
    inside = False
    for line in _SMAPS.read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(each, 16) for each in mapping.groups())
            inside = begin <= address < end
        elif inside and line.startswith("VmFlags"):
            return "hg" in line.split()
    return False
