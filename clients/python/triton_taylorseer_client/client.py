"""A gRPC client of one served model: plain calls, and streams with progress."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
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


class Client:
    """Talks to one model over gRPC; usable as a context manager, and from any number of threads.

    Args:
        url: host:port of the server's gRPC endpoint, perhaps with grpc:// or http:// before it, or with grpcs:// or
            https:// for TLS; dns:///host:port takes turns between all addresses of the name.
        model: the model's name; streams go to `<model>_stream`.
        retries: how often a request is sent again if the server has no room for it or does not answer.
        headers: sent with every call, for example a token for a proxy.
        ssl: use TLS, for example with a proxy; Triton itself has none by default.
        root_certificates: file, in PEM, of the authorities that are trusted in place of gRPC's own; it means TLS.
        idle_timeout_s: seconds of silence after which a stream ends with `Unavailable`; None for never. The server
            sends a sign of life every 5 s. Request and result may take ten times as long to travel.

    Raises:
        OSError: `root_certificates` cannot be read.
        ValueError: another argument is wrong; the message names it.
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
        self._target = endpoint.target
        self._model = model
        self._retries = retries
        self._headers = dict(headers or {})
        self._idle_timeout_s = idle_timeout_s
        self._credentials = credentials(endpoint.tls, root_certificates)
        self._client = self._connected()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def generate(
        self, prompt: str | None = None, *, timeout_s: float | None = None, request_id: str = "", **fields: Any
    ) -> Generation:
        """Makes a picture in one plain call.

        Args:
            prompt: for models that take one.
            timeout_s: seconds, retries included, after which the client gives up with `DeadlineExceeded`; None for
                never.
            request_id: names the request in Triton's traces, its verbose log and its own errors.
            **fields: any of `INPUTS`; those that are None or left out get the model's defaults. `input_image` and
                `mask_image` take what `pictures.picture_files` does: paths, bytes, Pillow's images, arrays.

        Raises:
            TypeError: an unknown field.
            InvalidArgument, Unavailable, Cancelled, DeadlineExceeded: what went wrong, if Triton says which it is.
            GenerationError: anything else, for example an unknown model.
        """
        fields = {"prompt": prompt, **fields}
        inputs = request_inputs(**fields)
        tries = Tries(self._retries, timeout_s)
        while True:
            try:
                result = self._client.infer(
                    self._model,
                    inputs,
                    request_id=request_id,
                    client_timeout=tries.left_s,
                    headers=self._headers,
                )
                return generation_of(result, self._model, fields)
            except InferenceServerException as error:
                failure = self._error(error)
            if not isinstance(failure, Unavailable):
                raise failure
            time.sleep(tries.pause_s(failure))

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        request_id: str = "",
        **fields: Any,
    ) -> Generator[Progress | Generation, None, None]:
        """Makes a picture and reports its progress: any number of `Progress`, then one `Generation`.

        Closing the iterator early cancels the request. Arguments and errors are those of `generate`, and
        `idle_timeout_s` that of the client, which is used where it is None; `math.inf` for never.
        """
        fields = {"prompt": prompt, **fields}
        inputs = request_inputs(**fields)
        tries = Tries(self._retries, timeout_s)
        idle_s = self._idle_timeout_s if idle_timeout_s is None else idle_timeout_s
        while True:
            begun = False
            try:
                updates = self._stream_once(inputs, fields, tries.left_s, request_id, Silence(self._model, idle_s))
                with contextlib.closing(updates):
                    for update in updates:
                        begun = True
                        yield update
                return
            except Unavailable as refusal:
                if begun:
                    raise
                pause = tries.pause_s(refusal)
            time.sleep(pause)

    def ready_models(self) -> list[str]:
        """The names of all models that are ready.

        They are read from the server's statistics, because `serve` asks for a key for its index of models.

        Raises:
            Unavailable: no server answers.
        """
        try:
            statistics = self._client.get_inference_statistics(headers=self._headers)
        except InferenceServerException as error:
            raise self._error(error) from None
        return [*dict.fromkeys(model.name for model in statistics.model_stats)]

    def parameters(self) -> dict[str, str]:
        """The `parameters` of the model's `config.pbtxt`: limits and defaults of its requests.

        Raises:
            GenerationError: an unknown model, or no server.
        """
        try:
            answer = self._client.get_model_config(f"{self._model}_stream", headers=self._headers)
        except InferenceServerException as error:
            raise self._error(error) from None
        return {name: value.string_value for name, value in answer.config.parameters.items()}

    def description(self, *, timeout_s: float | None = DESCRIPTION_TIMEOUT_S) -> dict[str, Any]:
        """What the model can do: `{"pipeline": …, "tasks": […], "presets": […]}`; presets by their names.

        Each task has the name of its `pipeline` in diffusers, how many pictures it takes
        (`"input_image": {"min": 1, "max": 1}`), whether it takes a mask (`mask_image`), and its default `strength`,
        None where it has none.

        Args:
            timeout_s: seconds after which the client gives up; None for never.

        Raises:
            GenerationError: an unknown model, no server, or no answer in time.
        """
        silence = Silence(self._model, self._idle_timeout_s)
        *_, answer = self._stream_once([], {}, timeout_s, "", silence, {**STREAM_PARAMETERS, DESCRIBE_PARAMETER: True})
        assert isinstance(answer, Generation), "a stream ends with a result or an error"
        return answer.report

    def _stream_once(
        self,
        inputs: list[triton.InferInput],
        fields: Mapping[str, Any],
        timeout_s: float | None,
        request_id: str,
        silence: Silence,
        parameters: Mapping[str, bool] = STREAM_PARAMETERS,
    ) -> Generator[Progress | Generation, None, None]:
        answers: queue.SimpleQueue[tuple[Any, InferenceServerException | None]] = queue.SimpleQueue()
        client = self._connected()  # a tritonclient carries one stream at a time
        finished, last = False, None
        try:
            client.start_stream(
                lambda result, error: answers.put((result, error)), stream_timeout=timeout_s, headers=self._headers
            )
            with contextlib.suppress(InferenceServerException):  # a stream that broke at once says why in its answer
                client.async_stream_infer(
                    f"{self._model}_stream",
                    inputs,
                    request_id=request_id,
                    parameters=parameters,
                    enable_empty_final_response=True,
                )
            while not finished:
                try:
                    result, error = answers.get(timeout=silence.limit_s)
                except queue.Empty:
                    if last is not None:
                        break  # all that is missing is the end
                    raise silence.broken() from None
                if error is not None:
                    finished = True
                    raise self._error(error)
                finished = result.get_response().parameters["triton_final_response"].bool_param
                if result.get_response().outputs:
                    # Result and error are handed on only once the stream has ended: one that is cancelled at this
                    # moment stays open in Triton 24.10, which then waits for it when it stops.
                    if is_last(result):
                        last = result
                    elif silence.is_news(update := progress_of(result)):
                        yield update
        finally:
            _stop_stream(client, cancel=not finished)
            client.close()
        if last is None:
            raise GenerationError(f"{self._model}_stream ended without a picture")
        yield outcome_of(last, self._url, self._model, fields)

    def _connected(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(
            self._target, creds=self._credentials, channel_args=channel_arguments(self._target)
        )

    def _error(self, error: InferenceServerException) -> GenerationError:
        return typed_error(str(error.status()), str(error.message()), self._url)


def _stop_stream(client: triton.InferenceServerClient, cancel: bool) -> None:
    stream = client._stream
    client.stop_stream(cancel_requests=cancel)
    if stream is not None:
        # tritonclient 2.73 leaves gRPC's thread waiting for the stream's next request after a cancel; None ends that.
        stream._request_queue.put(None)
