"""A model of two instances (`instance_group` count 2): two processes side by side, each with its own cache budget."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.support.repository import copy_model
from tests.support.serving import Triton
from triton_taylorseer_client import Generation


@pytest.fixture(scope="module")
def twin(triton: Triton) -> Triton:
    """The server with one more model, `twin`, of two instances."""
    copy_model(triton.repository, "twin", max_in_flight="2", fixed_batch="1")
    path = triton.repository / "twin_stream/config.pbtxt"
    path.write_text(path.read_text().replace("count: 1", "count: 2"))
    triton.load("twin")
    return triton


def of_both(metrics: dict[str, float], name: str, label: str) -> tuple[float, float]:
    """A metric of the first and of the second instance, whose labels are sorted by their names."""
    (second,) = [value for key, value in metrics.items() if {*key.split()} == {name, label, "0_1"}]
    return metrics[f"{name} {label}"], second


def grown(after: dict[str, float], before: dict[str, float], name: str, label: str) -> list[float]:
    """By how much a metric of the first and of the second instance has grown."""
    return [now - then for now, then in zip(of_both(after, name, label), of_both(before, name, label), strict=True)]


def test_both_work_at_once_and_are_counted(twin: Triton) -> None:
    with twin.client("twin") as client:
        alone = [client.generate("red apple, 3d", seed=seed, num_inference_steps=10) for seed in range(16)]
        before = twin.wait_until_idle("twin")
        with ThreadPoolExecutor(16) as pool:
            streams = [client.stream("red apple, 3d", seed=seed, num_inference_steps=10) for seed in range(16)]
            together = [each[-1] for each in pool.map(list, streams)]
    after = twin.wait_until_idle("twin")
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Generation)
        assert np.array_equal(one.image, other.image)
    done = grown(after, before, "taylorseer_requests_total", "ok")
    assert sum(done) == 16
    # Triton hands a request to whichever instance has taken its last one in: how many each gets depends on the load.
    assert min(done) >= 1
    full = grown(after, before, "taylorseer_steps_total", "full")
    assert sum(full) == sum(len(each.report["full_steps"]) for each in together if each)


def test_the_memory_budget_is_shared(twin: Triton) -> None:
    assert twin.server.log is not None
    told = [
        float(number.replace(",", ""))
        for number in re.findall(r"twin_stream: ([\d,]+) MiB for requests", twin.server.log.read_text())
    ]
    assert len(told) == 2
    assert sum(told) < 0.6 * psutil.virtual_memory().total / 2**20


@pytest.mark.parametrize("attempt", range(4))
def test_a_plain_call_that_is_given_up_is_ended_in_whichever_instance_it_is(twin: Triton, attempt: int) -> None:
    inputs = []
    for name, values in (
        ("prompt", np.array([b"red apple, 3d"], dtype=object)),
        ("num_inference_steps", np.array([1000], dtype=np.int32)),
        ("cache_interval", np.array([1], dtype=np.int32)),
    ):
        tensor = tritonclient.grpc.InferInput(name, [1], "BYTES" if values.dtype == object else "INT32")
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    before = of_both(twin.wait_until_idle("twin"), "taylorseer_requests_total", "cancelled")
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        twin.grpc.infer("twin", inputs, client_timeout=0.5)
    began = time.monotonic()
    after = of_both(twin.wait_until_idle("twin"), "taylorseer_requests_total", "cancelled")
    assert time.monotonic() - began < 5, "1000 full steps take longer"
    assert sum(after) - sum(before) == 1
