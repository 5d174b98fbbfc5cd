"""Looks after a running server: a model whose process no longer answers is loaded again, or the server is restarted."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from contextlib import suppress

import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from plugin.ops.control import grpc_headers
from plugin.tensors import PING_PARAMETER

_PERIOD_S = 2.0
_TIMEOUT_S = 10.0  # of one ping; no load keeps a living process from answering so long
_IN_A_ROW = 2  # failed pings that are too many
_AMONG_LATEST = 3  # the same among the latest six: of several instances one may be dead while the others answer
_RELOAD_TIMEOUT_S = 120.0
_STREAM = "_stream"
_LOADED_ANEW = "loaded_anew"  # a parameter that says when, and nobody reads


class Watch:
    """Asks each loaded model in turn whether its processes are alive.

    Triton's own health endpoints stay green when a Python model's process has died, and requests in flight there are
    never answered. A ping does no work and takes no place in line, so a busy model is not mistaken for a dead one. Of a
    plain model, where pings would wait behind calls and be counted with them, the processes are counted instead.

    Args:
        grpc_url: host:port.
        models: the stream models to look after with their plain models, where they are loaded; others would not know
            what a ping is.
        server_pid: of tritonserver, whose children the models' processes are.
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
        server_pid: int,
        control_key: str,
    ) -> None:
        self._url = grpc_url
        self._watched = models
        self._restart = restart
        self._say = say
        self._server_pid = server_pid
        self._headers = grpc_headers(control_key)
        self._failed: dict[str, deque[bool]] = {}
        self._whole: set[str] = set()  # the plain models that have had all their processes since they were loaded
        self._lacked = Counter[str]()  # looks in a row at which one of these lacked a process
        self._left_over: dict[str, set[int]] = {}  # processes of a plain model from before it was loaded anew
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; the models may go now."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(_PERIOD_S):
            with suppress(InferenceServerException):  # the server is busy with something else, or gone
                loaded = self._loaded()
                for stream_model in loaded.intersection(self._watched):
                    self._look_after(stream_model)
                    if (plain_model := stream_model.removesuffix(_STREAM)) in loaded:
                        self._look_after_plain(plain_model)

    def _loaded(self) -> set[str]:
        with triton.InferenceServerClient(self._url) as client:
            index = client.get_model_repository_index(headers=self._headers, client_timeout=_TIMEOUT_S).models
        return {model.name for model in index if model.state == "READY"}

    def _look_after_plain(self, model: str) -> None:
        wanted, there = self._processes(model)
        missing = wanted - len(there - self._left_over.get(model, set()))
        if missing <= 0:
            self._whole.add(model)
            self._lacked[model] = 0
        elif model in self._whole:  # one that never was is counted wrongly, and to load it anew would be no help
            self._lacked[model] += 1
        if self._lacked[model] < _IN_A_ROW or self._stopped.is_set():
            return
        lack = f"{model} lacks {missing} of {wanted} processes"
        self._say(f"{lack}: it is loaded anew, and those that are left finish their calls")
        self._lacked[model] = 0
        try:
            self._load_beside(model)
            self._left_over[model] = there
            self._whole.discard(model)
        except InferenceServerException as error:
            self._say(f"{model} could not be loaded anew: {error}")

    def _processes(self, model: str) -> tuple[int, set[int]]:
        """How many processes a plain model shall have, and those that live, left over ones among them."""
        with triton.InferenceServerClient(self._url) as client:
            config = client.get_model_config(model, headers=self._headers, client_timeout=_TIMEOUT_S).config
        wanted = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
        return wanted, instance_processes(self._server_pid, [group.name for group in config.instance_group])

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


def instance_processes(server_pid: int, groups: Collection[str]) -> set[int]:
    """The ids of the living processes that a server has for the instances of these groups, by the groups' names."""
    named = re.compile(rf"(?:{'|'.join(map(re.escape, groups))})_\d+")  # as Triton names its instances to them
    found = set()
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(server_pid).children(recursive=True):
            with suppress(psutil.Error):  # it has ended since
                if any(named.fullmatch(part) for part in process.cmdline()):
                    found.add(process.pid)
    return found


def ping(grpc_url: str, model: str, timeout_s: float = _TIMEOUT_S) -> str | None:
    """None where a stream model's process answers, else what is wrong."""
    answers: queue.SimpleQueue[InferenceServerException | None] = queue.SimpleQueue()
    answered = False
    with triton.InferenceServerClient(grpc_url) as client:
        try:
            client.start_stream(lambda result, error: answers.put(error), stream_timeout=timeout_s)
            with suppress(InferenceServerException):  # a stream that broke at once tells why as its answer
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
            # A stream that is cancelled just as it ends may have Triton (24.10) hold on to its request and the model: a
            # server that is stopped waits out its exit time-out.
            client.stop_stream(cancel_requests=not answered)
