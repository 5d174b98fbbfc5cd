"""A ping over gRPC, as any client could send it."""

from __future__ import annotations

import queue
from contextlib import suppress

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from plugin.tensors import PING_PARAMETER


def ping(grpc_url: str, model: str, timeout_s: float = 10.0) -> str | None:
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
