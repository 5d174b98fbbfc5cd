"""A server that is looked after: who does not answer is loaded again, and if that does not help, all is restarted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

import plugin.ops.watch
from plugin.ops.server import ServerConfig, _Foreground, free_ports
from plugin.ops.watch import Watch, instance_processes, ping
from plugin.repository import stream_models
from tests.plugin.ops.test_server import IDLE, fake_tritonserver, repository
from tests.support.repository import copy_model


def test_a_server_that_is_not_there_does_not_answer():
    (port,) = free_ports(1)
    problem = ping(f"127.0.0.1:{port}", "emoji_stream", timeout_s=5)
    assert problem is not None
    assert "onnect" in problem or "no answer" in problem


def test_only_models_of_this_plugin_are_looked_after(tmp_path):
    repository(tmp_path, a=IDLE, a_stream=IDLE)
    copy_model(tmp_path, "emoji")
    assert stream_models(tmp_path) == ["emoji_stream"]


class Watched(Watch):
    """A watch over models whose answers are written down beforehand."""

    def __init__(self, answers: list[str | None], loads_again: bool) -> None:
        self.said: list[str] = []
        self.restarts = 0
        self.loaded: list[str] = []
        super().__init__(
            "127.0.0.1:1", ["a_stream"], self.count, self.said.append, server_pid=0, control_key="of no server"
        )
        self._answers = answers
        self._loads_again = loads_again

    def count(self) -> None:
        self.restarts += 1

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plugin.ops.watch, "ping", lambda *_: self._answers.pop(0))
        while self._answers:
            self._look_after("a_stream")

    def _load_again(self, model: str) -> bool:
        self.loaded.append(model)
        return self._loads_again


def test_one_failure_is_none_and_two_in_a_row_are(monkeypatch):
    watch = Watched(["late", None, "late", None, None], loads_again=True)
    watch.run(monkeypatch)
    assert (watch.loaded, watch.said, watch.restarts) == ([], [], 0)
    watch = Watched(["late", "dead", None, "late"], loads_again=True)
    watch.run(monkeypatch)
    assert (watch.loaded, watch.restarts) == (["a_stream"], 0)
    assert watch.said == ["a_stream does not answer (dead): it is loaded again"]


def test_one_dead_instance_of_several_is_noticed(monkeypatch):
    watch = Watched(["dead", None, None, "dead", None, "dead"], loads_again=True)
    watch.run(monkeypatch)
    assert (watch.loaded, watch.restarts) == (["a_stream"], 0)
    watch = Watched(["dead", None, None, "dead", None, None, None, "dead"], loads_again=True)
    watch.run(monkeypatch)
    assert (watch.loaded, watch.restarts) == ([], 0)


def test_the_server_is_restarted_where_loading_again_does_not_help(monkeypatch):
    watch = Watched(["dead", "dead"], loads_again=False)
    watch.run(monkeypatch)
    assert (watch.loaded, watch.restarts) == (["a_stream"], 1)
    assert watch.said[-1] == "a_stream could not be loaded again: the server is restarted"


def test_nothing_is_restarted_once_the_server_is_told_to_end(monkeypatch):
    watch = Watched(["dead", "dead"], loads_again=False)
    watch.stop()
    watch.run(monkeypatch)
    assert (watch.loaded, watch.restarts) == ([], 0)


def foreground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Foreground:
    fake_tritonserver(tmp_path, f"echo run >> {tmp_path}/runs; exec sleep 60", monkeypatch)
    models = repository(tmp_path / "models", a=IDLE, a_stream=IDLE)
    config = ServerConfig(models, "127.0.0.1", *free_ports(3))
    return _Foreground(config, lambda: None, lambda _: None)


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


class Counted(Watch):
    """A watch over a plain model of three processes, those that live being written down beforehand."""

    def __init__(self, loads: bool = True) -> None:
        self.said: list[str] = []
        self.loads = 0
        super().__init__("127.0.0.1:1", [], lambda: None, self.said.append, server_pid=0, control_key="of no server")
        self._loads = loads

    def run(self, *living: set[int]) -> int:
        for self._living in living:
            self._look_after_plain("a")
        return self.loads

    def _processes(self, model: str) -> tuple[int, set[int]]:
        return 3, self._living

    def _load_beside(self, model: str) -> None:
        self.loads += 1
        if not self._loads:
            raise InferenceServerException("busy")


def test_a_plain_model_that_lacks_a_process_at_two_looks_is_loaded_anew():
    watch = Counted()
    assert watch.run({1, 2, 3}, {1, 3}, {1, 2, 3}, {1, 3}) == 0
    assert watch.run({1, 3}) == 1
    assert watch.said == ["a lacks 1 of 3 processes: it is loaded anew, and those that are left finish their calls"]


def test_processes_from_before_a_plain_model_was_loaded_anew_do_not_count():
    watch = Counted()
    assert watch.run({1, 2, 3}, {1, 3}, {1, 3}, {1, 3, 4, 5, 6}) == 1
    assert watch.run({1, 3, 4, 6}, {1, 3, 4, 6}) == 2


def test_a_plain_model_that_never_had_all_its_processes_is_left_alone():
    assert Counted().run({1}, {1}, {1}) == 0
    watch = Counted()
    assert watch.run({1, 2, 3}, {1, 3}, {1, 3}, {1, 3, 4}, {1, 3, 4}, {1, 3, 4}) == 1, "nor anew and anew"


def test_a_plain_model_that_could_not_be_loaded_anew_is_tried_again():
    watch = Counted(loads=False)
    assert watch.run({1, 2, 3}, {1, 3}, {1, 3}, {1, 3}, {1, 3}) == 2
    assert "a could not be loaded anew: busy" in watch.said


def test_the_processes_of_instances_are_found_by_their_groups_names():
    names = ["ibis_0_0", "ibis_0_1", "named_7", "ibis_stream_0_0", "my_ibis_0_0"]  # of no other test
    processes = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", name]) for name in names]
    ids = [process.pid for process in processes]
    me = os.getpid()
    try:
        assert instance_processes(me, ["ibis_0"]) == {*ids[:2]}
        assert instance_processes(me, ["ibis_0", "named"]) == {*ids[:3]}
        assert instance_processes(me, ["ibis_stream_0"]) == {ids[3]}
        processes[0].kill()
        _wait_for(lambda: instance_processes(me, ["ibis_0"]) == {ids[1]})  # the other is a zombie
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert instance_processes(processes[1].pid, ["ibis_0"]) == set(), "of a server that is gone"


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
