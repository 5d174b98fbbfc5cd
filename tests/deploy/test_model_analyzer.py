"""What Model Analyzer starts as its tritonserver: a container's own, or that of the wheel, from any shell."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from plugin.ops.server import free_ports
from tests.support.paths import BIN, ROOT
from tests.support.waiting import wait_for

CONFIGS = [ROOT / f"deploy/model_analyzer/{name}.yaml" for name in ("plain", "stream")]
SERVER = ROOT / "deploy/model_analyzer/tritonserver.py"
SYSTEM = "/usr/bin:/bin"  # without Triton's folder, as in a fresh shell


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def is_ready(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_name_it(config: Path):
    assert ROOT / yaml.safe_load(config.read_text())["triton_server_path"] == SERVER
    assert os.access(SERVER, os.X_OK)


def test_the_server_on_path_is_started_with_all_arguments(tmp_path: Path):
    (tmp_path / "tritonserver").write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n')
    (tmp_path / "tritonserver").chmod(0o755)
    ran = run(SERVER, "--model-repository=/a b", "--load-model=emoji", PATH=f"{tmp_path}:{BIN}:{SYSTEM}")
    assert ran.stdout.strip() == f"{ROOT} --model-repository=/a b --load-model=emoji", ran.stderr


def test_it_says_when_there_is_no_server():
    ran = run(BIN / "python3", "-S", SERVER, PATH=SYSTEM, PYTHONPATH=str(ROOT))  # -S: without what is installed
    assert ran.returncode == 1
    assert ran.stderr.startswith("tritonserver is not on PATH and the wheel that ships one is not installed")


@pytest.mark.triton
def test_the_wheels_server_loads_a_model_on_command(tmp_path: Path):
    """With the options that Model Analyzer gives it, and nothing of Triton's in the environment."""
    http, grpc, metrics = free_ports(3)
    options = ["--model-repository", str(ROOT / "model_repository"), "--model-control-mode", "explicit"]
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--http-address=127.0.0.1"]
    environment = {"PATH": f"{BIN}:{SYSTEM}", "HOME": os.environ["HOME"], "CUDA_VISIBLE_DEVICES": ""}
    url = f"http://127.0.0.1:{http}/v2"
    with (tmp_path / "log").open("w") as log:
        command = [SERVER, *options, *ports]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(lambda: process.poll() is not None or is_ready(f"{url}/health/live"), "Triton lives")
            load = urllib.request.Request(f"{url}/repository/models/emoji_stream/load", data=b"{}")
            with urllib.request.urlopen(load, timeout=120) as answer:
                assert answer.status == 200
            assert is_ready(f"{url}/models/emoji_stream/ready")
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0, (tmp_path / "log").read_text()
