"""Servers that start at once: model repositories of idle models, and a script in tritonserver's place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plugin.ops.server import ServerConfig, free_ports
from tests.support.throwaway import write_model
from tests.support.waiting import wait_for

OUTPUTS = ' { name: "x", data_type: TYPE_INT32, dims: [ 1 ] }'
IDLE = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"


def repository(folder: Path, **models: str) -> Path:
    for name, code in models.items():
        write_model(folder, name, code, {"prompt": "STRING"}, OUTPUTS)
    return folder


def local(folder: Path, **options) -> ServerConfig:
    return ServerConfig(folder, "127.0.0.1", *free_ports(3), **options)


def fake_tritonserver(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    binary = folder / "tritonserver"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return binary


def processes_with(argument: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if argument in arguments:
            found.append(arguments)
    return found


def wait_until_gone(argument: str) -> None:
    """Waits until no process has the argument: a killed one stays visible for a moment."""
    wait_for(lambda: not processes_with(argument), f"no process has {argument}", timeout_s=3)
