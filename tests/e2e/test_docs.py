"""The commands and programs of README and docs, run as written against a real Triton; only ports are replaced."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from plugin.ops import control
from plugin.ops.server import free_ports
from tests.support.documented_commands import BLOCKS, SHELL, ids, is_run
from tests.support.documents import ROOT, Block
from tests.support.serving import Triton

FRONT = re.compile(r"\S*triton-taylorseer front\b")  # stays in the foreground: the fixture starts it
# Of docs/extending.md are parts of files: tests/test_docs.py puts them there. Those of docs/clients need the libraries
# of tests/clients/test_other_clients_python.py, which runs them.
PROGRAMS = [
    block
    for block in BLOCKS
    if block.language == "python" and block.path.name != "extending.md" and block.path.parent.name != "clients"
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone, in which commands may leave files."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in (".venv", ".git", "out"):
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


class Ports:
    """Puts this test's ports in place of the documents'."""

    def __init__(self, triton: Triton, front: int) -> None:
        metrics = triton.server.config.metrics_port
        self._grpc = triton.grpc_url
        self._front = front
        self._places = {
            "localhost:8000": triton.http_url,
            "localhost:8001": triton.grpc_url,
            "localhost:8002": f"127.0.0.1:{metrics}",
            "localhost:9000": f"127.0.0.1:{front}",
        }

    def replaced(self, text: str) -> str:
        for written, ours in self._places.items():
            text = text.replace(written, ours)
        text = re.sub(r"(triton-taylorseer (?:generate|health))\b", rf"\1 --url {self._grpc}", text)
        return re.sub(r"(triton-taylorseer front)\b", rf"\1 --triton {self._grpc} --port {self._front}", text)


@pytest.fixture(scope="module")
def ports(triton: Triton) -> Ports:
    return Ports(triton, *free_ports(1))


@pytest.fixture(scope="module")
def environment(triton: Triton) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        control.ENVIRONMENT: triton.server.config.control_key,
    }


@pytest.fixture(scope="module")
def front(ports: Ports, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """The front, started by the documents' command, which is the same in all of them."""
    (command,) = {each for block in SHELL for each in block.commands if FRONT.match(each) and is_run(each)}
    process = subprocess.Popen(
        ["bash", "-c", f"exec {ports.replaced(command)}"], cwd=folder, env=environment, start_new_session=True
    )
    try:
        page = ports.replaced("http://localhost:9000")
        deadline = time.monotonic() + 60
        while True:
            try:
                assert b"triton-taylorseer" in urllib.request.urlopen(page, timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, "the front has ended"
                assert time.monotonic() < deadline, "the front must start"
                time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def runnable(block: Block) -> list[str]:
    return [each for each in block.commands if is_run(each) and not FRONT.match(each)]


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("block", [block for block in SHELL if runnable(block)], ids=ids)
def test_commands_run_as_written(block, ports, folder, environment):
    script = "\n".join(["set -euo pipefail", *runnable(block)])
    done = subprocess.run(
        ["bash", "-c", ports.replaced(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    # curl ends well even if the answer is an error
    assert '{"error"' not in done.stdout, done.stdout
    for picture in re.findall(r"-o (\S+\.png)", script):
        assert Image.open(folder / picture).size == (64, 64)


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("block", PROGRAMS, ids=ids)
def test_programs_run_as_written(block, ports, folder, environment):
    done = subprocess.run(
        [sys.executable, "-c", ports.replaced(block.text)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for picture in re.findall(r'"(\w+\.png)"', block.text):
        assert Image.open(folder / picture).size == (64, 64)
    for printed in re.findall(r"print\(.*\)  # (.+)", block.text):
        assert printed in done.stdout.splitlines()


def test_the_server_serves_on(triton):
    """Some of these commands unload a model and load it again."""
    assert triton.server.process is not None
    assert triton.server.process.poll() is None
    with triton.client() as client:
        assert client.generate("star, 3d", num_inference_steps=2).image.shape == (1, 64, 64, 3)
