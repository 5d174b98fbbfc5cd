"""Work in another thread, while the thread of a node looks after ComfyUI."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from tests.support.comfyui.loading import PACK


@pytest.fixture
def run(module):
    return module("background").run


def test_the_result_and_the_error_of_the_work_are_the_callers(run):
    async def right():
        return 7

    async def wrong():
        raise LookupError("on purpose")

    assert run(right, lambda: None) == 7
    with pytest.raises(LookupError, match="on purpose"):
        run(wrong, lambda: None)


def test_it_looks_in_the_callers_thread_until_the_work_is_done(run):
    looks = []

    async def work():
        await asyncio.sleep(0.5)

    run(work, lambda: looks.append(threading.get_ident()))
    assert {*looks} == {threading.get_ident()}
    assert 3 <= len(looks) <= 7


def test_what_looking_raises_is_raised_once_the_work_has_cleaned_up(run):
    cleaned = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            cleaned.append(True)

    def look():
        raise KeyError("stop")

    began = time.monotonic()
    with pytest.raises(KeyError, match="stop"):
        run(work, look)
    assert cleaned == [True]
    assert time.monotonic() - began < 5


def test_comfyui_can_end_in_the_middle_of_it():
    """A thread that is no daemon would hold its process up for as long as the work takes."""
    program = f"""
import asyncio, sys, threading, time
sys.path.insert(0, {str(PACK)!r})
from background import run
threading.Thread(target=run, args=(lambda: asyncio.sleep(600), lambda: None), daemon=True).start()
time.sleep(0.5)
"""
    subprocess.run([sys.executable, "-c", program], timeout=30, check=True)
