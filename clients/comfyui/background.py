"""Work in an event loop of its own, while the thread of the node looks after ComfyUI."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")

_POLL_S = 0.05
_LOOK_S = 0.1


def run(work: Callable[[], Coroutine[Any, Any, T]], look: Callable[[], None]) -> T:
    """The result of some work, which another thread does.

    Args:
        work: makes the coroutine.
        look: is called in this thread every 0.1 s. What it raises cancels the work, and is raised once that has ended.
    """
    future: Future[T] = Future()
    stop = threading.Event()
    # A daemon, as an executor's threads are not: ComfyUI ends at once when it is told to, in the middle of a video too.
    thread = threading.Thread(target=_fulfil, args=(future, stop, work), daemon=True)
    thread.start()
    try:
        while not future.done():
            wait({future}, timeout=_LOOK_S)
            look()
    finally:
        stop.set()
        thread.join()
    return future.result()


def _fulfil(future: Future[T], stop: threading.Event, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
    try:
        future.set_result(asyncio.run(_until(stop, work())))
    except BaseException as error:
        future.set_exception(error)


async def _until(stop: threading.Event, work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.ensure_future(work)
    while not task.done() and not stop.is_set():
        await asyncio.wait({task}, timeout=_POLL_S)
    task.cancel()  # has no effect on what is done
    return await task
