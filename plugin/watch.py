"""Looks after a running server: a model whose process no longer answers is loaded again, or the server is restarted."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from plugin.control import grpc_headers
from plugin.tensors import PING_PARAMETER

_PERIOD_S = 2.0
_TIMEOUT_S = 10.0  # of one ping; no load keeps a living process from answering so long
_IN_A_ROW = 2  # failed pings that are too many
_AMONG_LATEST = 3  # the same among the latest six: of several instances one may be dead while the others answer
_RELOAD_TIMEOUT_S = 120.0
_STREAM = "_stream"
_DEAD = "is not healthy"  # Triton's words where an instance's process is gone
_LOADED_ANEW = "loaded_anew"  # a parameter that says when, and nobody reads


class Watch:
    """Asks each loaded model in turn whether its processes are alive.

    Triton's own health endpoints stay green when a Python model's process has died, and requests in flight there are
    never answered. A ping does no work and, of a stream model, takes no place in line, so a busy model is not mistaken
    for a dead one. A plain model's pings wait behind its calls and are not waited for.

    Args:
        grpc_url: host:port.
        models: the stream models to look after with their plain models, where they are loaded; others would not know
            what a ping is.
        restart: called where loading a model again did not help.
        say: told what is wrong and what is done.
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
        self._watched = models
        self._restart = restart
        self._say = say
        self._headers = grpc_headers(control_key)
        self._failed: dict[str, deque[bool]] = {}
        self._plain: dict[str, _PlainPings] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; the models may go now."""
        self._stopped.set()

    def _run(self) -> None:
        plain_models = {model.removesuffix(_STREAM) for model in self._watched}
        while not self._stopped.wait(_PERIOD_S):
            with suppress(InferenceServerException):  # the server is busy with something else, or gone
                loaded = self._loaded()
                for model in loaded.intersection(plain_models):
                    self._look_after_plain(model)
                for model in loaded.intersection(self._watched):
                    self._look_after(model)

    def _loaded(self) -> set[str]:
        with triton.InferenceServerClient(self._url) as client:
            index = client.get_model_repository_index(headers=self._headers, client_timeout=_TIMEOUT_S).models
        return {model.name for model in index if model.state == "READY"}

    def _look_after_plain(self, model: str) -> None:
        problem = self._plain.setdefault(model, _PlainPings(self._url, model)).round()
        if problem is None or self._stopped.is_set():
            return
        self._say(f"{model} lacks a process ({problem}): it is loaded anew, and what is left of it finishes its calls")
        try:
            self._load_beside(model)
        except InferenceServerException as error:
            self._say(f"{model} could not be loaded anew: {error}")

    def _load_beside(self, model: str) -> None:
        # With another config Triton loads the model beside the old one, which takes no more calls and ends with its
        # last. To unload it first would refuse calls meanwhile; to load it as it is does nothing.
        with triton.InferenceServerClient(self._url) as client:
            config = client.get_model_config(model, headers=self._headers, client_timeout=_TIMEOUT_S, as_json=True)
            config = config["config"]
            config.setdefault("parameters", {})[_LOADED_ANEW] = {"string_value": f"{time.time():.3f}"}
            client.load_model(model, headers=self._headers, config=json.dumps(config), client_timeout=_RELOAD_TIMEOUT_S)

    def _look_after(self, model: str) -> None:
        problem = ping(self._url, model)
        failed = self._failed.setdefault(model, deque(maxlen=6))
        failed.append(problem is not None)
        too_many = (all([*failed][-_IN_A_ROW:]) and len(failed) >= _IN_A_ROW) or sum(failed) >= _AMONG_LATEST
        if problem is None or not too_many or self._stopped.is_set():
            return
        failed.clear()
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


class _PlainPings:
    """Pings of a plain model: in each round one for each instance, which is how Triton hands them out to idle ones.

    They are not waited for, since instances that hold a call answer after it: a round begins when all are back.
    """

    def __init__(self, grpc_url: str, model: str) -> None:
        # Never closed: 24.10 can crash where a connection closes while a plain call of it ends (server issue 8034).
        self._client = triton.InferenceServerClient(grpc_url)
        self._model = model
        self._missing = 0
        self._answers: queue.SimpleQueue[InferenceServerException | None] = queue.SimpleQueue()

    def round(self) -> str | None:
        """Takes the answers that have come, and asks again where all have; returns how a dead process was reported."""
        problems = []
        while self._missing:
            try:
                error = self._answers.get_nowait()
            except queue.Empty:
                break
            self._missing -= 1
            if error is not None and _DEAD in str(error.message()):
                problems.append(str(error.message()))
        if not self._missing and not problems:
            for _ in range(self._instances()):
                self._client.async_infer(
                    self._model, [], lambda result, error: self._answers.put(error), parameters={PING_PARAMETER: True}
                )
                self._missing += 1
        return problems[0] if problems else None

    def _instances(self) -> int:
        config = self._client.get_model_config(self._model, client_timeout=_TIMEOUT_S).config
        return sum(group.count for group in config.instance_group)


def ping(grpc_url: str, model: str, timeout_s: float = _TIMEOUT_S) -> str | None:
    """None where a stream model's process answers, else what is wrong."""
    answers: queue.SimpleQueue[InferenceServerException | None] = queue.SimpleQueue()
    with triton.InferenceServerClient(grpc_url) as client:
        try:
            client.start_stream(lambda result, error: answers.put(error), stream_timeout=timeout_s)
            with suppress(InferenceServerException):  # a stream that broke at once tells why as its answer
                client.async_stream_infer(
                    model, [], parameters={PING_PARAMETER: True}, enable_empty_final_response=True
                )
            error = answers.get(timeout=timeout_s + 1)
            return None if error is None else str(error)
        except queue.Empty:
            return f"no answer within {timeout_s:.0f} s"
        except InferenceServerException as error:
            return str(error)
        finally:
            client.stop_stream(cancel_requests=True)
