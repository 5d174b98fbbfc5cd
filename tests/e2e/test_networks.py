"""`serve` in networks that are not plain: a proxy in the environment, IPv6, TLS on gRPC, HTTP switched off."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx2
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from plugin.ops.server import free_ports
from tests.support.commands import COMMAND, port_options
from tests.support.repository import copy_model
from tests.support.waiting import wait_for

TLS = Path(__file__).parents[1] / "support/tls"
NOBODY = "http://127.0.0.1:9"  # a proxy that does not answer
PROXIES = {
    name: NOBODY for each in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy") for name in (each, each.upper())
}


@dataclass(frozen=True)
class Served:
    """A running `serve`.

    Attributes:
        http, grpc, metrics: its ports.
        process: of `serve`.
        log: what it prints.
    """

    http: int
    grpc: int
    metrics: int
    process: psutil.Process
    log: Path

    def said(self, words: str) -> bool:
        return words in " ".join(self.log.read_text().split())

    def kill_stream_process(self) -> None:
        for each in self.process.children(recursive=True):
            with suppress(psutil.Error):
                if any("swan_stream_0" in part for part in each.cmdline()):
                    each.kill()


def serve(folder: Path, *arguments: str, host: str = "127.0.0.1", **environment: str) -> Iterator[Served]:
    models = folder / "models"
    models.mkdir()
    copy_model(models, "swan", num_inference_steps="2")
    http, grpc_port, metrics = free_ports(3)
    options = ["--model-repository", str(models), "--host", host, *port_options(http, grpc_port, metrics)]
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [COMMAND, "serve", *options, "--", "--exit-timeout-secs=3", *arguments],
            stdout=log,
            stderr=log,
            env={**clean, "COLUMNS": "200", **environment},
        )
    served = Served(http, grpc_port, metrics, psutil.Process(process.pid), folder / "log")
    try:
        wait_for(lambda: served.said("ready:") or process.poll() is not None, "serve is ready", 120)
        assert process.poll() is None, served.log.read_text()
        yield served
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def behind_proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("proxies"), **PROXIES)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """TLS on gRPC, no HTTP, IPv6."""
    tls = [f"--grpc-server-cert={TLS / 'certificate.pem'}", f"--grpc-server-key={TLS / 'key.pem'}"]
    options = ["--allow-http=false", "--grpc-use-ssl=true", *tls]
    yield from serve(tmp_path_factory.mktemp("closed"), *options, host="::")


def test_a_proxy_in_the_environment_is_not_asked(behind_proxies: Served) -> None:
    health = subprocess.run(
        [COMMAND, "health", "--url", f"127.0.0.1:{behind_proxies.grpc}", "--model", "swan"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **PROXIES},
        check=False,
    )
    assert (health.returncode, health.stderr.strip()) == (0, "healthy")
    assert httpx2.get(f"http://127.0.0.1:{behind_proxies.http}/v2/health/ready", trust_env=False).status_code == 200


@pytest.mark.parametrize("name", ["behind_proxies", "closed"])
def test_the_watch_sees_a_process_that_dies(name: str, request: pytest.FixtureRequest) -> None:
    served: Served = request.getfixturevalue(name)
    served.kill_stream_process()
    wait_for(lambda: served.said("swan_stream does not answer"), "the watch says so", 40)
    assert served.said("it is loaded again")


def test_grpc_with_tls_answers_on_ipv6_and_on_ipv4(closed: Served) -> None:
    credentials = grpc.ssl_channel_credentials((TLS / "certificate.pem").read_bytes())
    for address in (f"[::1]:{closed.grpc}", f"127.0.0.1:{closed.grpc}"):
        with grpc.secure_channel(address, credentials, [("grpc.enable_http_proxy", 0)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=20).live
    with grpc.insecure_channel(f"127.0.0.1:{closed.grpc}", [("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=20)


def test_health_and_generate_speak_tls(closed: Served, tmp_path: Path) -> None:
    address = ["--url", f"grpcs://localhost:{closed.grpc}", "--model", "swan", "--ca", str(TLS / "certificate.pem")]
    # The test before has killed a process, which `serve` loads again.
    wait_for(lambda: _run("health", *address).returncode == 0, "the model is healthy", 60)
    made = _run("generate", "star", *address, "-o", str(tmp_path / "star.png"))
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "star.png").read_bytes().startswith(b"\x89PNG")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_a_port_that_is_switched_off_is_closed_and_the_others_are_open(closed: Served) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", closed.http), timeout=5)
    assert httpx2.get(f"http://[::1]:{closed.metrics}/metrics", trust_env=False).status_code == 200
    assert closed.said(f"ready: gRPC [::]:{closed.grpc}, metrics [::]:{closed.metrics}; Ctrl-C stops")
