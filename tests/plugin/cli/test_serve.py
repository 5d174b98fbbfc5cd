"""`serve`: ready, signals, exit codes, and errors of one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import httpx2
import pytest

from plugin.ops.server import free_ports
from tests.support.commands import COMMAND, free_port_options, port_options, run
from tests.support.fake_server import IDLE, fake_tritonserver, processes_with, repository, wait_until_gone

WIDE = {**os.environ, "COLUMNS": "200"}


@pytest.mark.triton
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_says_when_it_is_ready_and_ends_with_the_signal(tmp_path, number):
    models = repository(tmp_path / "models", a=IDLE, a_stream=IDLE)
    http, grpc, metrics = free_ports(3)
    ports = port_options(http, grpc, metrics)
    arguments = [COMMAND, "serve", "--model-repository", models, *ports, "--model", "a", "--", "--log-info=false"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env=WIDE)
    try:
        deadline = time.monotonic() + 30
        while f"ready: HTTP 127.0.0.1:{http}, gRPC" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert httpx2.get(f"http://127.0.0.1:{http}/v2/health/ready", trust_env=False).status_code == 200
        assert any("--log-info=false" in each for each in processes_with(str(tmp_path)))
        process.send_signal(number)
        assert process.wait(20) == 0
    finally:
        process.terminate()
        process.wait()
    wait_until_gone(str(tmp_path))


def test_serve_exits_with_the_servers_code(tmp_path, monkeypatch):
    fake_tritonserver(tmp_path, 'echo "given: $@"; exit 7', monkeypatch)
    arguments = [*free_port_options(), "--model-repository", str(tmp_path)]
    command = [COMMAND, "serve", *arguments, "--", "--log-verbose=1", "--strict-readiness=true"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert process.returncode == 7
    assert process.stdout.rstrip().endswith("--log-verbose=1 --strict-readiness=true")


def test_serve_and_build_errors_are_one_sentence(tmp_path):
    code, output = run("serve", "--model-repository", tmp_path / "nowhere[/b]")
    assert code == 1
    assert f"error: model repository {tmp_path}/nowhere[/b] is not a folder" in output
    code, output = run("serve", "--http-port", 70000)
    assert code == 1
    assert "error: http port is 70000, must be from 1 to 65535" in output
    code, output = run("build", "unicorn")
    assert code == 1
    assert "unicorn_stream" in output
    assert "error: " in output
