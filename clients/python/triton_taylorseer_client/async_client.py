"""The client for asyncio: any number of requests side by side in one thread, over one connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import tritonclient.grpc as sync_triton
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from triton_taylorseer_client.endpoint import Endpoint, credentials
from triton_taylorseer_client.fields import request_inputs
from triton_taylorseer_client.messages import (
    DESCRIBE_PARAMETER,
    DESCRIPTION_TIMEOUT_S,
    STREAM_PARAMETERS,
    Generation,
    GenerationError,
    Progress,
    Unavailable,
    channel_arguments,
    generation_of,
    is_last,
    outcome_of,
    progress_of,
    typed_error,
)
from triton_taylorseer_client.patience import IDLE_TIMEOUT_S, Silence, Tries
from triton_taylorseer_client.pictures import MOST_PICTURES


class AsyncClient:
    """Talks to one model over gRPC; usable as an asynchronous context manager, in one event loop.

    Its arguments and their errors are those of `Client`.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        model: str = "emoji",
        *,
        retries: int = 0,
        headers: Mapping[str, str] | None = None,
        ssl: bool = False,
        root_certificates: Path | str | None = None,
        idle_timeout_s: float | None = IDLE_TIMEOUT_S,
    ) -> None:
        Tries(retries, None)  # refuses a wrong number here
        Silence(model, idle_timeout_s)
        endpoint = Endpoint.of(url, ssl)
        self._url = url
        self._model = model
        self._retries = retries
        self._headers = dict(headers or {})
        self._idle_timeout_s = idle_timeout_s
        self._client = triton.InferenceServerClient(
            endpoint.target,
            creds=credentials(endpoint.tls, root_certificates),
            channel_args=channel_arguments(endpoint.target),
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()

    async def generate(
        self, prompt: str | None = None, *, timeout_s: float | None = None, request_id: str = "", **fields: Any
    ) -> Generation:
        """Makes a picture in one plain call; arguments and errors are those of `Client.generate`.

        Cancelling the task cancels the request.
        """
        fields = {"prompt": prompt, **fields}
        inputs = await _inputs(**fields)
        tries = Tries(self._retries, timeout_s)
        while True:
            try:
                result = await self._client.infer(
                    self._model,
                    inputs,
                    request_id=request_id,
                    client_timeout=tries.left_s,
                    headers=self._headers,
                )
                return generation_of(result, self._model, fields)
            except InferenceServerException as error:
                failure = typed_error(str(error.status()), str(error.message()), self._url)
            if not isinstance(failure, Unavailable):
                raise failure
            await asyncio.sleep(tries.pause_s(failure))

    async def stream(
        self,
        prompt: str | None = None,
        *,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        request_id: str = "",
        **fields: Any,
    ) -> AsyncGenerator[Progress | Generation, None]:
        """Makes a picture and reports its progress; arguments and errors are those of `Client.stream`.

        `headers` are sent with this request only, together with the client's own.

        Closing the iterator early, or cancelling the task, cancels the request. `break` leaves the iterator open until
        Python collects it: use `contextlib.aclosing` to close it at once.
        """
        fields = {"prompt": prompt, **fields}
        inputs = await _inputs(**fields)
        tries = Tries(self._retries, timeout_s)
        idle_s = self._idle_timeout_s if idle_timeout_s is None else idle_timeout_s
        while True:
            begun = False
            try:
                silence = Silence(self._model, idle_s)
                updates = self._stream_once(inputs, fields, tries.left_s, headers or {}, request_id, silence)
                async with aclosing(updates):
                    async for update in updates:
                        begun = True
                        yield update
                return
            except Unavailable as refusal:
                if begun:
                    raise
                pause = tries.pause_s(refusal)
            await asyncio.sleep(pause)

    async def ready_models(self) -> list[str]:
        """The names of all models that are ready.

        They are read from the server's statistics, because `serve` asks for a key for its index of models.

        Raises:
            Unavailable: no server answers.
        """
        try:
            statistics = await self._client.get_inference_statistics(headers=self._headers)
        except InferenceServerException as error:
            raise typed_error(str(error.status()), str(error.message()), self._url) from None
        return [*dict.fromkeys(model.name for model in statistics.model_stats)]

    async def parameters(self) -> dict[str, str]:
        """The `parameters` of the model's `config.pbtxt`: limits and defaults of its requests.

        Raises:
            GenerationError: an unknown model, or no server.
        """
        try:
            answer = await self._client.get_model_config(f"{self._model}_stream", headers=self._headers)
        except InferenceServerException as error:
            raise typed_error(str(error.status()), str(error.message()), self._url) from None
        return {name: value.string_value for name, value in answer.config.parameters.items()}

    async def description(self, *, timeout_s: float | None = DESCRIPTION_TIMEOUT_S) -> dict[str, Any]:
        """What the model can do, as `Client.description` tells it.

        Raises:
            GenerationError: an unknown model, or no server.
        """
        silence = Silence(self._model, self._idle_timeout_s)
        updates = self._stream_once([], {}, timeout_s, {}, "", silence, {**STREAM_PARAMETERS, DESCRIBE_PARAMETER: True})
        *_, answer = [update async for update in updates]
        assert isinstance(answer, Generation), "a stream ends with a result or an error"
        return answer.report

    async def _stream_once(
        self,
        inputs: list[sync_triton.InferInput],
        fields: Mapping[str, Any],
        timeout_s: float | None,
        headers: Mapping[str, str],
        request_id: str,
        silence: Silence,
        parameters: Mapping[str, bool] = STREAM_PARAMETERS,
    ) -> AsyncGenerator[Progress | Generation, None]:
        request = {
            "model_name": f"{self._model}_stream",
            "inputs": inputs,
            "request_id": request_id,
            "parameters": parameters,
        }
        answers = self._client.stream_infer(
            _only(request), stream_timeout=timeout_s, headers={**self._headers, **headers}
        )
        last, ended = None, False
        try:
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    result, error = await _next(answers, silence.limit_s)
                    if error is not None:
                        raise typed_error(str(error.status()), str(error.message()), self._url)
                    # Result and error are handed on only once the stream has ended: one that is cancelled at this
                    # moment stays open in Triton 24.10, which then waits for it when it stops.
                    if is_last(result):
                        last = result
                    elif silence.is_news(update := progress_of(result)):
                        yield update
            ended = True
        except asyncio.TimeoutError:  # Python 3.10 has one beside the built-in
            if last is None:  # else all that is missing is the end
                raise silence.broken() from None
        except grpc.RpcError as error:
            raise typed_error(error.code().name, error.details() or "", self._url) from None
        finally:
            if not ended:
                answers.cancel()
        if last is None:
            raise GenerationError(f"{self._model}_stream ended without a picture")
        yield outcome_of(last, self._url, self._model, fields)


async def _inputs(**fields: Any) -> list[sync_triton.InferInput]:
    """The tensors of a request; pictures are read in a thread, because other requests wait for this one."""
    if any(fields.get(name) is not None for name in MOST_PICTURES):
        return await asyncio.to_thread(request_inputs, **fields)
    return request_inputs(**fields)


async def _next(answers: AsyncIterator[Any], limit_s: float | None) -> Any:
    """What comes next within so many seconds; None for no limit.

    `asyncio.timeout` is of Python 3.11, and `wait_for` loses a cancel now and then before 3.12.

    Raises:
        asyncio.TimeoutError: nothing has come.
        StopAsyncIteration: the end has come.
    """
    upcoming = asyncio.ensure_future(anext(answers))
    try:
        await asyncio.wait({upcoming}, timeout=limit_s)
        if not upcoming.done():
            raise asyncio.TimeoutError
        return upcoming.result()
    finally:
        upcoming.cancel()  # has no effect on what has come


async def _only(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The requests of a stream with one request; the server ends the stream once it is answered."""
    yield request
