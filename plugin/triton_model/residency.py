"""Whether a stream model's weights are in memory: they leave it when no request has come for some time, and come back
for the next one."""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import triton_python_backend_utils as pb_utils

from plugin.errors import Unavailable, message_of
from plugin.memory import give_back, resident_bytes

if TYPE_CHECKING:
    from plugin.denoising.host import PipelineHost

_CHECK_S = 0.05  # how often a request that waits for the model checks whether it is still wanted


class Residency:
    """Holds the host of one stream model, for requests in any thread.

    What refers to the host holds its memory, so nothing but this object keeps it, and requests have it only inside
    `in_use`. One thread of this object loads and unloads, so that neither keeps an answer or a cancel waiting.

    Args:
        name: of the model.
        load: makes the host. It is called here, and again in the thread whenever the model comes back.

    Attributes:
        host: the host; None while it is not there for requests.
        loaded: whether its weights are in memory, for the metrics: until they have been given back.

    Raises:
        Exception: whatever `load` raises.
    """

    def __init__(self, name: str, load: Callable[[], PipelineHost]) -> None:
        self._name = name
        self._load = load
        self._changed = threading.Condition()  # guards all that follows
        self._users = 0
        self._wanted = False  # a request waits for it
        self._failed_loads = 0
        self._failure = ""  # of the latest load
        self._idle_since = time.monotonic()
        self._texts = (0, 0)  # hits and misses in the text caches of hosts that are gone
        self._closing = False
        self._unload_after_s = 0.0
        self._device = "cpu"
        self._thread: threading.Thread | None = None
        began = time.monotonic()
        self.host: PipelineHost | None = load()
        self.loaded = True
        self._load_s = time.monotonic() - began

    def start(self, unload_after_s: float, device: str) -> None:
        """Settles what has been loaded, and begins to unload the model where it is idle.

        Args:
            unload_after_s: how long it must be idle; 0 for never.
            device: torch's name of the device that has the weights.
        """
        _settle()
        self._unload_after_s, self._device = unload_after_s, device
        self._idle_since = time.monotonic()
        if unload_after_s > 0:
            self._thread = threading.Thread(target=self._work, name=f"{self._name}-residency", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread, unless it is loading, and closes the host."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        if self.host is not None:
            self.host.close()

    @property
    def failure(self) -> str | None:
        """Why the engine cannot be used any more; None while it can, and while it is not in memory."""
        host = self.host
        return None if host is None else host.failure

    @property
    def expected_load_s(self) -> float:
        """How long a request that comes now will wait for the model: as long as its latest load took."""
        return 0.0 if self.host is not None else self._load_s

    @property
    def text_counts(self) -> tuple[int, int]:
        """How many prompts were found in the text cache, and how many were not, since the model was first loaded."""
        with self._changed:
            hits, misses = self._texts
            if self.host is None:
                return hits, misses
            return hits + self.host.text_cache.hits, misses + self.host.text_cache.misses

    @contextmanager
    def in_use(self, check: Callable[[], None]) -> Iterator[PipelineHost]:
        """The host, which stays in memory inside. Waits for it where it has to be loaded.

        Args:
            check: called while that takes time; what it raises ends the waiting.

        Raises:
            Unavailable: it could not be loaded. The next request has it tried again.
        """
        with self._changed:
            self._users += 1
        try:
            yield self._present(check)
        finally:
            with self._changed:
                self._users -= 1
                self._idle_since = time.monotonic()
                self._changed.notify_all()

    def _present(self, check: Callable[[], None]) -> PipelineHost:
        with self._changed:
            failed_loads = self._failed_loads
            while self.host is None:
                if self._failed_loads > failed_loads:
                    raise Unavailable(f"the model could not be loaded again: {self._failure}")
                self._wanted = True
                self._changed.notify_all()
                self._changed.wait(_CHECK_S)
                check()
            return self.host

    # What the thread does.

    def _work(self) -> None:
        while work := self._next_work():
            work()

    def _next_work(self) -> Callable[[], None] | None:
        """Waits until the model has to be loaded or unloaded; None at the end."""
        with self._changed:
            while not self._closing:
                if self.host is None and self._wanted:
                    return self._bring
                left_s = self._left_s()
                if left_s is not None and left_s <= 0:
                    return self._unload
                self._changed.wait(left_s)
            return None

    def _left_s(self) -> float | None:
        """How long the model has to stay idle to be unloaded; None where that cannot come by waiting."""
        if self.host is None or self._users:
            return None
        return self._idle_since + self._unload_after_s - time.monotonic()

    def _unload(self) -> None:
        began, before = time.monotonic(), _held_bytes(self._device)
        with self._changed:
            if self._users or self.host is None:
                return
            host, self.host = self.host, None
            self._texts = (self._texts[0] + host.text_cache.hits, self._texts[1] + host.text_cache.misses)
        try:
            host.close()
        except Exception as error:
            self._log_error(error)
        del host
        self._give_back()
        self.loaded = False
        held, why = _held_bytes(self._device), f"no request for {self._unload_after_s:g} s"
        self._log(f"{why}: unloaded in {time.monotonic() - began:.1f} s, {_mib(before - held)} given back", held)

    def _bring(self) -> None:
        began = time.monotonic()
        try:
            host = self._load()
        except BaseException as error:
            self._log_error(error)
            failure = message_of(error)
        else:
            _settle()
            seconds = time.monotonic() - began
            self._log(f"loaded again in {seconds:.1f} s", _held_bytes(self._device))
            self.loaded = True
            with self._changed:
                self.host, self._load_s = host, seconds
                self._end_load()
            return
        self._give_back()  # what had been loaded until then
        with self._changed:
            self._failed_loads += 1
            self._failure = failure
            self._end_load()

    def _end_load(self) -> None:
        self._wanted = False
        self._idle_since = time.monotonic()
        self._changed.notify_all()

    def _give_back(self) -> None:
        """Frees what nothing refers to any more, and gives its memory back to the system."""
        gc.unfreeze()  # what is hidden from the collector is never freed
        _settle()
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()
        give_back()

    def _log(self, sentence: str, held: int) -> None:
        pb_utils.Logger.log_info(f"{self._name}: {sentence}; {_mib(held)} in use")

    def _log_error(self, error: BaseException) -> None:
        pb_utils.Logger.log_error(f"{self._name}: {''.join(traceback.format_exception(error))}")


def _settle() -> None:
    """Collects garbage, and hides the rest from the collector.

    A loaded model is half a million objects that do not die; a full collection that walks them stops all threads for a
    third of a second. `freeze` hides them. The second `collect` resets the collector's count of survivors: a full
    collection starts only after a quarter of that count is new, which half a million would put off for too long.
    """
    gc.collect()
    gc.freeze()
    gc.collect()


def _held_bytes(device: str) -> int:
    """Memory in use, of the process or of the GPU that has the weights."""
    if not device.startswith("cuda"):
        return resident_bytes()
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"
