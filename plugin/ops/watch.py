"""Watches a running server: a model whose process no longer answers is loaded again, or the server is restarted."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from plugin.ops.control import grpc_headers
from plugin.tensors import PING_PARAMETER

_PERIOD_S = 2.0
_TIMEOUT_S = 10.0  # of one ping; no load keeps a living process from answering for that long
_IN_A_ROW = 2  # failed pings that are too many
_AMONG_LATEST = 3  # the same among the latest six: of several instances one may be dead while the others answer
_DEAD = "is not healthy"  # what Triton answers for a process that it knows has ended: no second ping is needed
_RELOAD_TIMEOUT_S = 120.0


class Watch:
    """Asks each loaded model in turn whether its process is alive.

    Triton's own health endpoints still report ready when a Python model's process has died, and streams in flight there
    are never answered. A ping does no work and is never queued, so a busy model is not mistaken for a dead one.

    Args:
        grpc_url: host:port.
        models: the stream models to watch, with their plain models; other models do not know what a ping is.
        restart: called where loading a model again did not help.
        say: called with a sentence: what is wrong and what is done.
        control_key: the server's.
    """

    def __init__(
        self,
        grpc_url: str,
        models: Collection[str],
        restart: Callable[[], None],
        say: Callable[[str], None],
        *,
        control_key: str,
    ) -> None:
        self._url = grpc_url
        self._stream_models = frozenset(models)
        self._plain_models = frozenset(model.removesuffix("_stream") for model in models)
        self._restart = restart
        self._say = say
        self._headers = grpc_headers(control_key)
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
        while not self._stopped.wait(_PERIOD_S):
            with suppress(InferenceServerException):  # the server is busy with something else, or gone
                loaded = self._loaded()
                for model in sorted(loaded & (self._stream_models | self._plain_models)):
                    self._look_after(model)

    def _loaded(self) -> set[str]:
        with triton.InferenceServerClient(self._url) as client:
            index = client.get_model_repository_index(headers=self._headers, client_timeout=_TIMEOUT_S).models
        return {model.name for model in index if model.state == "READY"}

    def _look_after(self, model: str) -> None:
        problem = ping(self._url, model)
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
        if model in self._plain_models and ping(self._url, stream_model) is not None:
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
        with triton.InferenceServerClient(self._url) as client, suppress(InferenceServerException):
            client.unload_model(model, headers=self._headers, client_timeout=_TIMEOUT_S)
            while time.monotonic() < deadline and not self._stopped.is_set():
                with suppress(InferenceServerException):
                    client.load_model(model, headers=self._headers, client_timeout=_RELOAD_TIMEOUT_S)
                    if ping(self._url, model) is None:
                        return True
                time.sleep(_PERIOD_S)
        return False


def ping(grpc_url: str, model: str, timeout_s: float = _TIMEOUT_S) -> str | None:
    """None where the process of a stream model or a plain one answers, else what is wrong.

    Args:
        grpc_url: host:port.
        model: the model's name.
        timeout_s: how long to wait for the answer.
    """
    answers: queue.SimpleQueue[InferenceServerException | None] = queue.SimpleQueue()
    answered = False
    with triton.InferenceServerClient(grpc_url) as client:
        try:
            client.start_stream(lambda result, error: answers.put(error), stream_timeout=timeout_s)
            with suppress(InferenceServerException):  # a stream that broke at once says why in its answer
                client.async_stream_infer(
                    model, [], parameters={PING_PARAMETER: True}, enable_empty_final_response=True
                )
            error = answers.get(timeout=timeout_s + 1)
            answered = True
            return None if error is None else str(error)
        except queue.Empty:
            return f"no answer within {timeout_s:.0f} s"
        except InferenceServerException as error:
            return str(error)
        finally:
            # A stream that is cancelled just as it ends may have Triton (24.10) keep its request and with it the model:
            # a server that is stopped then waits out its exit time-out.
            client.stop_stream(cancel_requests=not answered)
