"""Engine triton through a real Triton: the block stack as a model of its own, batched by Triton or called as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc

from plugin.config import ModelConfig
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.ops.control import grpc_headers
from plugin.ops.server import Server, ServerConfig, free_ports
from taylorseer import CacheConfig, full_steps
from tests.support import metrics
from tests.support.paths import ROOT
from tests.support.repository import write_pair
from tests.support.tiny import FAMILIES
from tests.support.waiting import wait_for
from triton_taylorseer_client import Client, Generation, GenerationError, Progress, Unavailable
from triton_taylorseer_client.messages import Pixels

EXAMPLE = ROOT / "examples/engine_triton"

# A batch of another size sums in another order: float32 rounding, carried through the steps and rounded to pixels.
# With the other size's rotary tables the same requests are some 70 levels away.
LEVELS = 2

BLOCKS = "from triton_taylorseer import BlockStackModel as TritonPythonModel\n"

# Takes its tensors as a TensorRT plan without a batch axis does, and has a fault: 48 x 64 pixels.
PLAN = """
from pathlib import Path

import triton_python_backend_utils as pb_utils
from torch import no_grad
from torch.utils.dlpack import from_dlpack

from plugin.config import ModelConfig


class TritonPythonModel:
    def initialize(self, args):
        from plugin.denoising.loading import load_pipeline
        from plugin.families import family_of

        source = ModelConfig.from_folder(Path(args["model_repository"])).source
        self.stack = family_of(load_pipeline(source).transformer).block_stack()

    def execute(self, requests):
        return [self.run(request) for request in requests]

    def run(self, request):
        inputs = {tensor.name(): from_dlpack(tensor.to_dlpack()) for tensor in request.inputs()}
        if inputs["hidden_states"].shape[1] == 12 * 16:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("the plan has no profile for this"))
        with no_grad():
            return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("features", self.stack(**inputs))])
"""


def tensor(name: str, dtype: str, *dims: int, number: bool = False) -> str:
    reshape = " reshape: { shape: [ ] }" if number else ""
    return f'{{ name: "{name}" data_type: TYPE_{dtype} dims: [ {", ".join(map(str, dims))} ]{reshape} }}'


# name: dtype, request, max_batch_size, the called model's code, its inputs, its output
TINY: dict[str, tuple[str, dict[str, Any], int, str, list[str], str]] = {
    "dit": (
        "float32",
        {"class_label": 207},
        8,
        BLOCKS,
        [
            tensor("hidden_states", "FP32", -1, 32),
            tensor("timestep", "FP32", 1, number=True),
            tensor("class_labels", "INT64", 1, number=True),
        ],
        tensor("features", "FP32", -1, 32),
    ),
    "flux": (
        "bfloat16",
        {"prompt": "a red apple", "height": 32, "width": 48},
        0,
        PLAN,
        [
            *(tensor(name, "BF16", -1, -1, 32) for name in ("hidden_states", "encoder_hidden_states")),
            tensor("temb", "BF16", -1, 32),
            *(tensor(name, "FP32", -1, 16) for name in ("rotary_cos", "rotary_sin")),
        ],
        tensor("features", "BF16", -1, -1, 32),
    ),
}


def write_tiny(repository: Path, name: str, scratch: Path) -> None:
    """A tiny pipeline with engine triton, and its block stack as a model of its own that runs torch."""
    dtype, _, max_batch_size, code, inputs, output = TINY[name]
    pipeline = scratch / f"{name}_pipeline"
    FAMILIES[name].make(scratch, torch.float32).save_pretrained(pipeline)
    parameters = {
        "pipeline": str(pipeline),
        "dtype": dtype,
        "torch_threads": "1",
        "engine": "triton",
        "engine_model": f"{name}_blocks",
        "num_inference_steps": "6",
        "min_size": "8",
        "size_multiple": "8",
        "takes_prompt": "false" if name == "dit" else "true",
    }
    write_pair(repository, name, parameters)
    blocks = repository / f"{name}_blocks"
    (blocks / "1").mkdir(parents=True)
    (blocks / "1/model.py").write_text(code)
    lines = [
        f'name: "{name}_blocks"',
        'backend: "python"',
        f"max_batch_size: {max_batch_size}",
        "dynamic_batching { }" if max_batch_size else "",
        "instance_group [ { kind: KIND_CPU, count: 1 } ]",
        f"input [ {', '.join(inputs)} ]",
        f"output [ {output} ]",
        *(
            f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
            for key, value in {"pipeline": pipeline, "dtype": dtype, "engine": "torch", "torch_threads": 1}.items()
        ),
    ]
    (blocks / "config.pbtxt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shipped example and the tiny models beside it."""
    folder = tmp_path_factory.mktemp("engine_triton")
    (folder / "models").mkdir()
    for model in EXAMPLE.iterdir():
        (folder / "models" / model.name).symlink_to(model)
    for name in TINY:
        write_tiny(folder / "models", name, tmp_path_factory.mktemp(name))
    with Server(ServerConfig(folder / "models", "127.0.0.1", *free_ports(3)), log=folder / "triton.log") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def control(server: Server) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as control:
        yield control


def metric(server: Server, name: str, model: str) -> float:
    return metrics.value(server.metrics_url, name, model=model)


def levels_apart(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(int) - other).max())


def wait_until_idle(server: Server) -> None:
    names = ("taylorseer_requests_in_flight", "taylorseer_cache_bytes")
    wait_for(lambda: not any(metric(server, name, "emoji") for name in names), "emoji is idle", timeout_s=20)


@pytest.mark.parametrize(
    "fields",
    [{}, {"cache_interval": 1, "num_inference_steps": 10}, {"height": 48, "width": 80}, {"negative_prompt": "cactus"}],
)
def test_a_request_alone_gets_the_bytes_of_the_engine_in_process(triton, client, fields):
    """A batch of one is the same call of the same engine, so the bits are the same too."""
    with triton.client() as in_process:
        expected = in_process.generate("red apple, 3d", seed=1, **fields)
    result = client.generate("red apple, 3d", seed=1, **fields)
    assert (expected.report["engine"], result.report["engine"]) == ("onnxruntime", "triton")
    assert result.report["full_steps"] == expected.report["full_steps"]
    assert result.report["cache_bytes"] == expected.report["cache_bytes"]
    assert np.array_equal(result.image, expected.image)


def test_requests_of_two_sizes_of_equal_token_count_share_batches_and_get_their_own_pictures(server, client):
    """Triton's batcher joins the two sizes, whose tensors have equal shapes; the model must part them again."""
    sizes = [(48, 80), (80, 48)]
    requests = [
        {"seed": seed, "height": sizes[seed % 2][0], "width": sizes[seed % 2][1], "num_inference_steps": 20}
        | {"cache_interval": 5}
        for seed in range(8)
    ]
    alone = [client.generate("red apple, 3d", **fields) for fields in requests]
    names = ("nv_inference_request_success", "nv_inference_exec_count")
    before = [metric(server, name, "emoji_blocks") for name in names]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda fields: client.generate("red apple, 3d", **fields), requests))
    calls, executions = (metric(server, name, "emoji_blocks") - old for name, old in zip(names, before, strict=True))
    full = full_steps(20, 5, 3)
    assert calls == 8 * len(full), "each full step is one call"
    assert executions < 0.7 * calls, "and Triton has joined them"
    for one, other in zip(alone, together, strict=True):
        assert other.report["full_steps"] == list(full)
        assert other.report["engine_calls"] == len(full)
        assert levels_apart(one.image, other.image) <= LEVELS
    assert levels_apart(alone[0].image, alone[2].image) > 10 * LEVELS, "the pictures are not all alike"


@pytest.mark.parametrize("name", TINY)
def test_other_families_dtypes_and_models_without_a_batch_axis_give_the_bytes_of_the_engine_in_process(server, name):
    """DiT has one number for each of its two rows; FLUX goes in bfloat16, as to a plan without a batch axis."""
    config = ModelConfig.from_folder(server.config.model_repository / f"{name}_stream")
    fields = TINY[name][1]
    request = replace(config.defaults, **fields, seed=3, cache=CacheConfig(interval=2, order=1, warmup_steps=1))
    expected = generate(PipelineHost(load_pipeline(config.source), "torch"), request)
    with Client(server.grpc_url, name) as tiny:
        cache = {"cache_interval": 2, "cache_order": 1, "cache_warmup_steps": 1}
        result = tiny.generate(**fields, **cache, seed=3)
    assert result.report["engine"] == "triton"
    assert result.report["full_steps"] == expected.report.full_steps
    assert np.array_equal(result.image, expected.image)


def test_an_error_of_the_called_model_ends_its_request_with_a_sentence_and_no_other(server):
    with Client(server.grpc_url, "flux") as tiny:
        good = partial(tiny.generate, "a red apple", seed=1, height=32, width=48)
        expected = good().image
        with ThreadPoolExecutor(4) as pool:
            companions = [pool.submit(good) for _ in range(3)]
            with pytest.raises(
                GenerationError,
                match="EngineError: model flux_blocks, which runs the block stack: the plan has no profile for this",
            ):
                tiny.generate("a red apple", height=48, width=64)
        for each in companions:
            assert np.array_equal(each.result().image, expected)


def test_a_called_model_that_leaves_ends_the_request_in_flight_and_others_are_refused_until_it_is_back(
    server, client, control
):
    key = grpc_headers(server.config.control_key)
    expected = client.generate("red apple, 3d", seed=1, num_inference_steps=4).image
    calls = metric(server, "nv_inference_request_success", "emoji_blocks")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.generate, "red apple, 3d", num_inference_steps=1000, cache_interval=1)
        wait_for(lambda: metric(server, "nv_inference_request_success", "emoji_blocks") >= calls + 5)
        control.unload_model("emoji_blocks", headers=key)
        with pytest.raises(Unavailable):
            running.result(timeout=20)
    wait_for(lambda: not control.is_model_ready("emoji_blocks"))
    missing = "model emoji_blocks, which runs the block stack: .*Model 'emoji_blocks' is not ready"
    with pytest.raises(Unavailable, match=missing):
        client.generate("red apple, 3d", num_inference_steps=4)
    with pytest.raises(Unavailable, match=missing):
        list(client.stream("red apple, 3d", num_inference_steps=4))
    control.load_model("emoji_stream", headers=key)  # the order of loading does not matter
    assert control.is_model_ready("emoji_stream")
    with pytest.raises(Unavailable, match=missing):
        client.generate("red apple, 3d", num_inference_steps=4)
    control.load_model("emoji_blocks", headers=key)
    assert np.array_equal(client.generate("red apple, 3d", seed=1, num_inference_steps=4).image, expected)
    wait_until_idle(server)


def test_a_cancelled_request_ends_at_its_next_step_and_changes_nothing_for_another(server, client):
    expected = client.generate("red apple, 3d", seed=1).image
    stream = client.stream("rocket, 3d", num_inference_steps=1000, cache_interval=1)
    update = next(stream)
    assert isinstance(update, Progress)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(client.generate, "red apple, 3d", seed=1)
        stream.close()
        company = other.result().image
    assert levels_apart(company, expected) <= LEVELS
    began = time.monotonic()
    wait_until_idle(server)
    assert time.monotonic() - began < 5, "1000 full steps take more"
    *_, result = client.stream("red apple, 3d", seed=1)
    assert isinstance(result, Generation)
    assert np.array_equal(result.image, expected)


def test_a_server_that_stops_answers_requests_in_flight_and_ends_well(server, client):
    """The last test: it stops the server. Triton refuses calls between models once it has been told to stop."""
    calls = metric(server, "nv_inference_request_success", "emoji_blocks")

    def run(stream: bool) -> str:
        fields = {"num_inference_steps": 1000, "cache_interval": 1}
        with pytest.raises(Unavailable) as caught:
            list(client.stream("red apple, 3d", **fields)) if stream else client.generate("red apple, 3d", **fields)
        return str(caught.value)

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(run, stream) for stream in [True] * 4 + [False] * 2]
        # All six: a call that came after the stop would be refused by another sentence.
        states = ("taylorseer_requests_in_flight", "taylorseer_requests_waiting")
        wait_for(lambda: sum(metric(server, state, "emoji") for state in states) == 6, "all are taken")
        wait_for(lambda: metric(server, "nv_inference_request_success", "emoji_blocks") >= calls + 12)
        server.stop()
    assert {each.result() for each in answers} == {"model emoji_blocks, which runs the block stack: Server not ready"}
    assert server.process is not None
    assert server.process.returncode == 0
