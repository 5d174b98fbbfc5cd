"""A worker process that is killed: `serve` loads its model again within half a minute."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from clients import Client, GenerationError
from plugin.server import free_ports
from plugin.watch import ping
from tests.e2e.repository import copy_model

COMMAND = str(Path(sys.executable).parent / "triton-taylorseer")


def test_a_killed_worker_is_replaced_while_its_neighbour_serves(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("killed", "neighbour"):
        copy_model(folder, name)
    http, grpc, metrics = free_ports(3)
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    # A worker that died keeps the server from ending by itself before its time is up.
    arguments = [COMMAND, "serve", "--model-repository", str(folder), *ports, "--", "--exit-timeout-secs=3"]
    url = f"127.0.0.1:{grpc}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        with Client(url, "killed") as client, Client(url, "neighbour") as neighbour:
            _wait_until_served(client, 60)
            assert ping(url, "killed_stream") is None
            worker = next(
                each
                for each in psutil.Process(process.pid).children(recursive=True)
                if "stub" in each.name() and any("killed_stream" in part for part in each.cmdline())
            )
            worker.kill()
            assert neighbour.generate("red apple, 3d", num_inference_steps=2).image.shape == (1, 64, 64, 3)
            seconds = _wait_until_served(client, 30)
            assert seconds < 30
            assert neighbour.generate("red apple, 3d", num_inference_steps=2).image.shape == (1, 64, 64, 3)
        assert "killed_stream does not answer" in (tmp_path / "log").read_text().replace("\n", " ")
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_served(client: Client, timeout_s: float) -> float:
    began = time.monotonic()
    while True:
        try:
            client.generate("red apple, 3d", num_inference_steps=2, timeout_s=5)
            return time.monotonic() - began
        except GenerationError:
            assert time.monotonic() - began < timeout_s, "not served in time"
            time.sleep(0.2)
