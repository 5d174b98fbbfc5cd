"""Large tensors in large pages, each in a process of its own: torch reads the environment once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from plugin.ops.huge_pages import VARIABLE, ask_for_huge_pages
from tests.support.huge_pages import kernel_tells
from tests.support.paths import ROOT

ASK = """
import os
from plugin.ops.huge_pages import ask_for_huge_pages
ask_for_huge_pages(os.environ)
"""
LARGE = """
import torch
from tests.support.huge_pages import asks_for_huge_pages
large = torch.ones(1 << 26, dtype=torch.uint8)
print(asks_for_huge_pages(large.data_ptr() + (1 << 25)))
"""
# Blocks of 25 MB come and go, as a model's features do; printed is how much memory the process has less without one.
KEPT = """
import psutil
import torch
process = psutil.Process()
for _ in range(3):
    block = torch.ones(25_000_000, dtype=torch.uint8)
    held = process.memory_info().rss
    del block
print(held - process.memory_info().rss)
"""


def run(script: str, **environment: str) -> str:
    """What a script prints in a process of its own, whose environment has only what the arguments say about pages."""
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=inherited | environment, timeout=120
    )
    return done.stdout.strip()


@pytest.mark.skipif(not kernel_tells(), reason="this kernel does not report which memory asks for large pages")
def test_large_tensors_ask_for_large_pages_where_nothing_says_otherwise():
    assert run(LARGE) == "False"
    assert run(ASK + LARGE) == "True"
    assert run(ASK + LARGE, **{VARIABLE: "0"}) == "False"


def test_blocks_that_come_again_and_again_are_kept_with_large_pages_as_without():
    assert abs(int(run(KEPT))) < 5_000_000
    assert abs(int(run(ASK + KEPT))) < 5_000_000


def test_the_environments_word_stands():
    environ = {VARIABLE: "0"}
    ask_for_huge_pages(environ)
    assert environ == {VARIABLE: "0"}
