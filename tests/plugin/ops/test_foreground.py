"""A server on the terminal: that it is restarted, stopped and reported ready."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import plugin.ops.server_config
from plugin.ops.foreground import Foreground
from plugin.ops.server import ServerConfig, free_ports
from tests.support.fake_server import IDLE, fake_tritonserver, repository


def foreground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str = "exec sleep 60") -> Foreground:
    fake_tritonserver(tmp_path, f"echo run >> {tmp_path}/runs; {script}", monkeypatch)
    models = repository(tmp_path / "models", a=IDLE, a_stream=IDLE)
    config = ServerConfig(models, "127.0.0.1", *free_ports(3), extra_args=("--exit-timeout-secs=0",))
    return Foreground(config, lambda: None, lambda _: None)


def wait_for_runs(tmp_path: Path, count: int) -> None:
    path, pause = tmp_path / "runs", threading.Event()
    for _ in range(200):
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        pause.wait(0.05)
    raise AssertionError(f"not run {count} times")


def test_a_restart_ends_the_server_and_says_that_it_is_to_be_run_again(tmp_path, monkeypatch):
    server = foreground(tmp_path, monkeypatch)
    codes: list[int] = []
    first = threading.Thread(target=lambda: codes.append(server.run()))
    first.start()
    wait_for_runs(tmp_path, 1)
    server.restart()
    first.join(10)
    assert server.restarting
    second = threading.Thread(target=lambda: codes.append(server.run()))
    second.start()
    wait_for_runs(tmp_path, 2)
    assert not server.restarting
    server.stop()
    second.join(10)
    assert not server.restarting, "a stop is the last word"
    server.restart()
    assert not server.restarting
    assert codes == [-15, -15]


def test_a_stop_is_over_as_soon_as_the_server_has_ended(tmp_path, monkeypatch):
    server = foreground(tmp_path, monkeypatch)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for_runs(tmp_path, 1)
    began = time.monotonic()
    server.stop()
    thread.join(10)
    assert time.monotonic() - began < 1.5, "the guard included"


def test_a_server_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin.ops.server_config, "_LATE_S", 0.3)
    server = foreground(tmp_path, monkeypatch, "trap '' TERM; while true; do sleep 0.1; done")
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(server.run()))
    thread.start()
    wait_for_runs(tmp_path, 1)
    time.sleep(0.2)  # until the trap is set
    server.stop()
    thread.join(10)
    assert codes == [-9]
