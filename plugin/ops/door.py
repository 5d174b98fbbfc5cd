"""Triton's own HTTP, on the socket that only the server's user can reach: no key, proxy, TLS or guard is in between."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from plugin.tensors import PING_PARAMETER


class DoorError(Exception):
    """Triton has not answered, or with an error; the message says which."""


class Door:
    """Asks one tritonserver, in any thread.

    Args:
        path: of Triton's HTTP socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_ready(self, timeout_s: float = 5.0) -> bool:
        """Whether it answers, and has all its models loaded."""
        try:
            return self._ask("GET", "/v2/health/ready", None, timeout_s)[0] == 200
        except DoorError:
            return False

    def loaded(self, timeout_s: float) -> set[str]:
        """The models that are ready.

        Raises:
            DoorError: there is no answer.
        """
        index = json.loads(self._post("/v2/repository/index", {}, timeout_s))
        return {model["name"] for model in index if model.get("state") == "READY"}

    def load(self, model: str, timeout_s: float) -> None:
        """Loads a model, again where it is loaded.

        Raises:
            DoorError: it cannot be loaded.
        """
        self._post(f"/v2/repository/models/{quote(model)}/load", {}, timeout_s)

    def unload(self, model: str, timeout_s: float) -> None:
        """Unloads a model; returns before its requests in flight have ended.

        Raises:
            DoorError: Triton refuses.
        """
        self._post(f"/v2/repository/models/{quote(model)}/unload", {}, timeout_s)

    def ping(self, model: str, timeout_s: float) -> str | None:
        """None where the process of a stream model or a plain one answers, else what is wrong."""
        try:
            answer = self._post(f"/v2/models/{quote(model)}/generate_stream", {PING_PARAMETER: True}, timeout_s)
        except TimeoutError:
            return f"no answer within {timeout_s:.0f} s"
        except DoorError as error:
            return str(error)
        events = [line.removeprefix("data:") for line in answer.splitlines() if line.startswith("data:")]
        return next((str(event["error"]) for event in map(json.loads, events) if "error" in event), None)

    def _post(self, path: str, body: Any, timeout_s: float) -> str:
        status, answer = self._ask("POST", path, json.dumps(body), timeout_s)
        if status != 200:
            raise DoorError(_error_in(answer) or f"HTTP status {status}")
        return answer

    def _ask(self, method: str, path: str, body: str | None, timeout_s: float) -> tuple[int, str]:
        try:
            with closing(_Connection(self._path, timeout_s)) as connection:
                connection.request(method, path, body)
                answer = connection.getresponse()
                return answer.status, answer.read().decode("utf-8", "replace")
        except TimeoutError:
            raise DoorTimeout(f"no answer within {timeout_s:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise DoorError(f"{type(error).__name__}: {error}") from None


class DoorTimeout(DoorError, TimeoutError):
    """Triton has not answered in time."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("triton", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _error_in(answer: str) -> str | None:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return None
