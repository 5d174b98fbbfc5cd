"""Clients that leave at any moment, over every way in: nothing of them stays behind."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from plugin.ops.server import Server, ServerConfig, free_ports
from tests.support import metrics
from tests.support.front import running_front
from tests.support.held import held_by
from tests.support.repository import copy_model
from tests.support.waiting import wait_for
from triton_taylorseer_client import Client

CANCELS = int(os.environ.get("CANCELS", "100"))
AT_ONCE = 4
LONGEST_S = 0.4  # a request is left within this time; it takes about as long
STEPS = 20


class Leaver:
    """One server, one front, and the ways to leave a request."""

    def __init__(self, server: Server, front: str) -> None:
        self.server = server
        self._channel = grpc.insecure_channel(server.grpc_url, [("grpc.enable_http_proxy", 0)])
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._front = front.removeprefix("http://")
        body = {"prompt": "star", "num_inference_steps": STEPS}
        ways: dict[str, Callable[[float], None]] = {
            "grpc call": self._leave_call,
            "grpc stream": self._leave_stream,
            "generate": lambda after_s: self._leave_http(server.http_url, "/v2/models/swan/generate", body, after_s),
            "generate_stream": lambda after_s: self._leave_http(
                server.http_url, "/v2/models/swan_stream/generate_stream", body, after_s
            ),
            "front": lambda after_s: self._leave_http(self._front, "/v1/images/generations", body, after_s),
            "front stream": lambda after_s: self._leave_http(
                self._front, "/v1/images/generations", body | {"stream": True}, after_s
            ),
        }
        self.ways = ways

    def cancelled(self) -> float:
        """How many requests the model has counted as cancelled."""
        return metrics.of_plugin(self.server.metrics_url, "swan").get("taylorseer_requests_total cancelled", 0.0)

    def is_idle(self) -> bool:
        found = metrics.of_plugin(self.server.metrics_url, "swan")
        names = ("taylorseer_requests_in_flight", "taylorseer_requests_waiting", "taylorseer_cache_bytes")
        return not any(value for name, value in found.items() if name.startswith(names))

    def leave(self, count: int, seed: int) -> None:
        """Leaves that many requests, each at a random moment, some at once."""
        chance = random.Random(seed)
        plans = [(chance.choice([*self.ways]), chance.uniform(0, LONGEST_S)) for _ in range(count)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda plan: self.ways[plan[0]](plan[1]), plans))
        wait_for(self.is_idle, "nothing is in flight", 60)

    def _request(self, model: str) -> service_pb2.ModelInferRequest:
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="prompt", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"star")
        request.inputs.add(name="num_inference_steps", datatype="INT32", shape=[1]).contents.int_contents.append(STEPS)
        return request

    def _leave_call(self, after_s: float) -> None:
        call = self._stub.ModelInfer.future(self._request("swan"))
        time.sleep(after_s)
        call.cancel()

    def _leave_stream(self, after_s: float) -> None:
        with tritonclient.grpc.InferenceServerClient(self.server.grpc_url) as client:
            client.start_stream(lambda result, error: None)
            tensor = tritonclient.grpc.InferInput("prompt", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([b"star"], dtype=np.object_))
            client.async_stream_infer("swan_stream", [tensor])
            time.sleep(after_s)
            client.stop_stream(cancel_requests=True)

    def _leave_http(self, host: str, path: str, body: dict[str, object], after_s: float) -> None:
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        assert isinstance(connection.sock, socket.socket)
        time.sleep(after_s)
        connection.sock.close()


@pytest.fixture(scope="module")
def leaver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Leaver]:
    folder = tmp_path_factory.mktemp("left") / "models"
    folder.mkdir()
    copy_model(folder, "swan", num_inference_steps=str(STEPS), max_in_flight="4", max_waiting="64")
    with (
        Server(ServerConfig(folder, "127.0.0.1", *free_ports(3)), log=folder.parent / "log") as server,
        running_front(server.grpc_url) as front,
    ):
        yield Leaver(server, front)


def test_clients_that_leave_at_any_moment_leave_nothing_behind(leaver: Leaver) -> None:
    leaver.leave(40, seed=1)  # what is kept for later is kept after the first ones
    before = held_by(leaver.server)
    cancelled = leaver.cancelled()
    leaver.leave(CANCELS, seed=2)
    assert leaver.cancelled() - cancelled > CANCELS / 5, "else they were all done, or refused, before they were left"

    def is_as_before() -> bool:
        after = held_by(leaver.server)
        return (
            after["processes"] == before["processes"]
            and after["threads"] <= before["threads"] + 8  # gRPC's own pools grow and shrink
            and after["files"] <= before["files"] + 8
            and after["memory"] < before["memory"] + 60_000_000
            and after["shared memory"] <= before["shared memory"] + 4_000_000
        )

    try:
        wait_for(is_as_before, "all is as before", 30)
    finally:
        print(f"\n{CANCELS} requests left: before {before}, after {held_by(leaver.server)}")
    with Client(leaver.server.grpc_url, "swan") as client:
        assert client.generate("red apple, 3d", timeout_s=60).image.shape == (1, 64, 64, 3)
