"""A model that is unloaded while it is idle, in a real Triton: its process's memory, requests that bring it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.large_encoder import flux_with_large_encoder, weights_bytes
from tests.support.pings import ping
from tests.support.repository import write_pair
from tests.support.serving import Triton, running
from tests.support.waiting import wait_for
from triton_taylorseer_client import AsyncClient, Client, Generation

AFTER_S, LOAD_S = 1.0, 2.0  # until it is unloaded, and what each later load takes longer, for the tests to be in time

# What a model.py may do: `load_host` is what loads the model again, too.
SLOW_TO_COME_BACK = f"""
import time

from triton_taylorseer import StreamModel


class TritonPythonModel(StreamModel):
    comes_back = False

    def load_host(self):
        if self.comes_back:
            time.sleep({LOAD_S})
        self.comes_back = True
        return super().load_host()
"""
REQUEST = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 4, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A saved pipeline, and the bytes of its weights: about 200 MiB."""
    folder = tmp_path_factory.mktemp("large")
    pipe = flux_with_large_encoder(folder)
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline", sum(weights_bytes(getattr(pipe, each)) for each in ("text_encoder_2", "transformer"))


@pytest.fixture(scope="module")
def triton(weights: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    repository = tmp_path_factory.mktemp("unloading") / "models"
    common = {
        "pipeline": str(weights[0]),
        "engine": "torch",
        "torch_threads": "1",
        "max_batch": "1",
        "max_sequence_length": "16",
        "max_in_flight": "1",
        "memory_budget_mib": "64",
    }
    write_pair(repository, "large", common | {"unload_after_s": str(AFTER_S)})
    write_pair(repository, "offloaded", common | {"offload": "text_encoder_2=idle, vae=cpu"})
    (repository / "large_stream/1/model.py").write_text(SLOW_TO_COME_BACK)
    with running(repository, extra_args=("--exit-timeout-secs=5",)) as triton:
        yield triton


def is_loaded(triton: Triton) -> bool:
    return triton.metrics("large")["taylorseer_model_loaded"] == 1


@pytest.fixture
def unloaded(triton: Triton) -> Iterator[Client]:
    """A client of the model, which is not in memory."""
    wait_for(lambda: not is_loaded(triton), "the model is unloaded", timeout_s=20)
    with triton.client("large") as client:
        yield client


def made(client: Client, **fields: Any) -> Generation:
    return client.generate(**{**REQUEST, **fields})


def test_an_unload_gives_back_the_weights_and_the_next_request_makes_the_same_picture(triton, weights):
    process = triton.process_of("large_stream")
    with triton.client("large") as client:
        expected = made(client)
        before = process.memory_info().rss
        for _ in range(2):
            wait_for(lambda: not is_loaded(triton), "the model is unloaded", timeout_s=20)
            assert before - process.memory_info().rss >= weights[1]
            again = made(client)
            assert np.array_equal(again.image, expected.image)
            assert again.report["queue_s"] > LOAD_S
            assert is_loaded(triton)
            assert abs(process.memory_info().rss - before) < 0.25 * weights[1]


def test_pings_and_descriptions_are_answered_without_it(triton, unloaded):
    assert ping(triton.grpc_url, "large_stream") is None
    assert unloaded.description()["pipeline"] == "FluxPipeline"
    assert triton.grpc.is_model_ready("large_stream")
    assert not is_loaded(triton)


def test_requests_that_come_while_it_loads_wait_for_it(triton, unloaded):
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(made, unloaded)
        time.sleep(LOAD_S / 2)
        others = [pool.submit(made, unloaded) for _ in range(2)]
        assert ping(triton.grpc_url, "large_stream") is None
        assert time.monotonic() - began < LOAD_S, "the ping is answered while the model loads"
        pictures = [each.result(60).image for each in (first, *others)]
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])
    assert triton.wait_until_idle("large")["taylorseer_requests_total error"] == 0


def test_a_request_can_be_cancelled_while_it_loads(triton, unloaded):
    def cancelled() -> float:
        return triton.metrics("large")["taylorseer_requests_total cancelled"]

    async def give_up() -> None:
        async with AsyncClient(triton.grpc_url, "large") as client:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(anext(client.stream(**REQUEST)), LOAD_S / 4)

    before, began = cancelled(), time.monotonic()
    asyncio.run(give_up())
    wait_for(lambda: cancelled() == before + 1, "the request is cancelled")
    assert time.monotonic() - began < LOAD_S, "it does not wait for the load"
    assert not is_loaded(triton)
    assert made(unloaded).report["num_steps"] == 4


def test_a_model_whose_encoder_is_idle_makes_the_same_picture_in_less_memory(triton, unloaded, weights):
    expected = made(unloaded)
    large = triton.process_of("large_stream").memory_info().rss
    with triton.client("offloaded") as client:
        for _ in range(2):  # the second time its prompt is known
            assert np.array_equal(made(client).image, expected.image)
            assert large - triton.process_of("offloaded_stream").memory_info().rss > 0.85 * weights[1]
