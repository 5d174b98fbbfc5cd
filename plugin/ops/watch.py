"""Watches a running server: a model whose process no longer answers is loaded again, or the server is restarted."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress

from plugin.ops.door import Door, DoorError

_PERIOD_S = 2.0
_TIMEOUT_S = 10.0  # of one ping; no load keeps a living process from answering for that long
_IN_A_ROW = 2  # failed pings that are too many
_AMONG_LATEST = 3  # the same among the latest six: of several instances one may be dead while the others answer
_DEAD = "is not healthy"  # what Triton answers for a process that it knows has ended: no second ping is needed
_RELOAD_TIMEOUT_S = 120.0
_BLIND_S = 30.0  # without an answer of the server, before that is said


class Watch:
    """Asks each loaded model in turn whether its process is alive.

    Triton's own health endpoints still report ready when a Python model's process has died, and streams in flight there
    are never answered. A ping does no work and is never queued, so a busy model is not mistaken for a dead one.

    Args:
        door: Triton's own HTTP.
        models: the stream models to watch, with their plain models; other models do not know what a ping is.
        restart: called where loading a model again did not help.
        say: called with a sentence: what is wrong and what is done.
    """

    def __init__(
        self,
        door: Door,
        models: Collection[str],
        restart: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._door = door
        self._stream_models = frozenset(models)
        self._plain_models = frozenset(model.removesuffix("_stream") for model in models)
        self._restart = restart
        self._say = say
        self._failed: dict[str, deque[bool]] = {}
        self._answered: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; the models may go now."""
        self._stopped.set()

    def _run(self) -> None:
        reached_at, blind = time.monotonic(), False
        while not self._stopped.wait(_PERIOD_S):
            try:
                self._round()
            except DoorError as error:
                if not blind and time.monotonic() - reached_at > _BLIND_S:
                    blind = True
                    self._say(f"the watch has not reached the server for {_BLIND_S:.0f} s, and sees nothing: {error}")
            else:
                if blind:
                    self._say("the watch reaches the server again")
                reached_at, blind = time.monotonic(), False

    def _round(self) -> None:
        for model in sorted(self._door.loaded(_TIMEOUT_S) & (self._stream_models | self._plain_models)):
            self._look_after(model)

    def _look_after(self, model: str) -> None:
        problem = self._ping(model)
        if problem is None:
            self._answered.add(model)
        elif model in self._plain_models and model not in self._answered:
            return  # a plain model that is not ours has never answered a ping
        if self._has_failed(model, problem) and not self._stopped.is_set():
            self._mend(model, str(problem))

    def _has_failed(self, model: str, problem: str | None) -> bool:
        """Whether this ping of a model was one too many that failed."""
        failed = self._failed.setdefault(model, deque(maxlen=6))
        failed.append(problem is not None)
        if problem is None:
            return False
        in_a_row = len(failed) >= _IN_A_ROW and all([*failed][-_IN_A_ROW:])
        if not (in_a_row or sum(failed) >= _AMONG_LATEST or _DEAD in problem):
            return False
        failed.clear()
        return True

    def _mend(self, model: str, problem: str) -> None:
        stream_model = f"{model}_stream"
        if model in self._plain_models and self._ping(stream_model) is not None:
            # Triton (24.10) waits forever to hand the dead process a response, in the thread that sends all responses
            # of the stream model: nothing but a restart ends the requests in flight there.
            self._say(f"{model} and {stream_model} do not answer ({problem}): the server is restarted")
            self._restart()
            return
        self._say(f"{model} does not answer ({problem}): it is loaded again")
        if not self._load_again(model) and not self._stopped.is_set():
            self._say(f"{model} could not be loaded again: the server is restarted")
            self._restart()

    def _load_again(self, model: str) -> bool:
        deadline = time.monotonic() + _RELOAD_TIMEOUT_S
        with suppress(DoorError):
            self._door.unload(model, _TIMEOUT_S)
            while time.monotonic() < deadline and not self._stopped.is_set():
                with suppress(DoorError):
                    self._door.load(model, _RELOAD_TIMEOUT_S)
                    if self._ping(model) is None:
                        return True
                time.sleep(_PERIOD_S)
        return False

    def _ping(self, model: str) -> str | None:
        return self._door.ping(model, _TIMEOUT_S)
