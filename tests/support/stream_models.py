"""What tests ask of models in a pretended Triton, and what they read in the answers."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np

from tests.support.pretend_triton import Client, InferenceResponse, MetricFamily

PARAMETERS = {  # of a tiny model
    "pipeline": "nobody/tiny",
    "engine": "torch",
    "height": "32",
    "width": "32",
    "size_multiple": "16",
    "num_inference_steps": "8",
    "max_sequence_length": "16",
    "memory_budget_mib": "64",
    "max_in_flight": "2",
    "max_waiting": "4",
    "max_batch": "1",
}
FIELDS = {"prompt": "a cat", "seed": 7, "num_inference_steps": 6, "guidance_scale": 3.5}


def arrays(response: InferenceResponse) -> dict[str, np.ndarray]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def report_of(response: InferenceResponse) -> dict[str, Any]:
    return json.loads(arrays(response)["report"][0])


def error_of(client: Client) -> tuple[str, str]:
    (response,) = client.all()
    return response.error().code(), response.error().message()


def outcomes() -> dict[str, int]:
    """Requests by outcome, those that there are; none before the response thread has made the metrics."""
    family = MetricFamily.families.get("taylorseer_requests_total")
    metrics = family.metrics if family else []
    return {metric.labels["outcome"]: int(metric.value) for metric in metrics if metric.value}


class Gate:
    """An engine that lets a number of calls through, and holds or breaks the next."""

    def __init__(self, engine: Any) -> None:
        self.name, self._engine = engine.name, engine
        self.entered, self.open, self.breaks = threading.Semaphore(0), threading.Event(), False

    def run(self, inputs: Any, out: Any = None) -> Any:
        self.entered.release()
        assert self.open.wait(30)
        if self.breaks:
            raise RuntimeError("the engine broke on purpose")
        return self._engine.run(inputs, out)


def error_of_last(client: Client) -> tuple[str, str]:
    response = client.all()[-1]
    assert response.has_error()
    return response.error().code(), response.error().message()
