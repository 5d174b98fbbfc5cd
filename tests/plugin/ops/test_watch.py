"""A watched server: a model that does not answer is loaded again; if that does not help, the server is restarted."""

from __future__ import annotations

from pathlib import Path

import plugin.ops.watch
from plugin.ops.door import Door, DoorError
from plugin.ops.watch import Watch
from plugin.repository import stream_models
from tests.support.fake_server import IDLE, repository
from tests.support.repository import copy_model
from tests.support.waiting import wait_for


def test_a_server_that_is_not_there_does_not_answer(tmp_path):
    assert "FileNotFoundError" in (Door(tmp_path / "http").ping("emoji_stream", timeout_s=5) or "")


class Blind(Door):
    """A server that answers in some rounds and not in others."""

    def __init__(self, answers: list[bool]) -> None:
        self.answers = answers

    def loaded(self, timeout_s: float) -> set[str]:
        if self.answers and not self.answers.pop(0):
            raise DoorError("ConnectionRefusedError: nobody")
        return set()


def test_a_watch_that_sees_nothing_says_so_once_and_says_when_it_sees_again(monkeypatch):
    monkeypatch.setattr(plugin.ops.watch, "_PERIOD_S", 0.01)
    monkeypatch.setattr(plugin.ops.watch, "_BLIND_S", 0.05)
    said: list[str] = []
    door = Blind([True] + [False] * 30 + [True])
    watch = Watch(door, [], lambda: None, said.append)
    watch.start()
    wait_for(lambda: len(said) == 2, "the watch has said that it sees again")
    watch.stop()
    assert said == [
        "the watch has not reached the server for 0 s, and sees nothing: ConnectionRefusedError: nobody",
        "the watch reaches the server again",
    ]


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
        super().__init__(Door(Path("of no server")), ["a_stream"], self.count, self.said.append)
        self._answers = answers
        self._loads_again = loads_again

    def count(self) -> None:
        self.restarts += 1

    def _ping(self, model: str) -> str | None:
        return self._answers.pop(0)

    def run(self, model: str = "a_stream") -> None:
        while self._answers:
            self._look_after(model)

    def _load_again(self, model: str) -> bool:
        self.loaded.append(model)
        return self._loads_again


def test_one_failure_is_none_and_two_in_a_row_are():
    watch = Watched(["late", None, "late", None, None], loads_again=True)
    watch.run()
    assert (watch.loaded, watch.said, watch.restarts) == ([], [], 0)
    watch = Watched(["late", "dead", None, "late"], loads_again=True)
    watch.run()
    assert (watch.loaded, watch.restarts) == (["a_stream"], 0)
    assert watch.said == ["a_stream does not answer (dead): it is loaded again"]


def test_one_dead_instance_of_several_is_noticed():
    watch = Watched(["dead", None, None, "dead", None, "dead"], loads_again=True)
    watch.run()
    assert (watch.loaded, watch.restarts) == (["a_stream"], 0)
    watch = Watched(["dead", None, None, "dead", None, None, None, "dead"], loads_again=True)
    watch.run()
    assert (watch.loaded, watch.restarts) == ([], 0)


def test_the_server_is_restarted_where_loading_again_does_not_help():
    watch = Watched(["dead", "dead"], loads_again=False)
    watch.run()
    assert (watch.loaded, watch.restarts) == (["a_stream"], 1)
    assert watch.said[-1] == "a_stream could not be loaded again: the server is restarted"


def test_nothing_is_restarted_once_the_server_is_told_to_end():
    watch = Watched(["dead", "dead"], loads_again=False)
    watch.stop()
    watch.run()
    assert (watch.loaded, watch.restarts) == ([], 0)


def test_a_plain_model_that_has_answered_is_watched_and_one_that_never_did_is_left_alone():
    watch = Watched([None, "dead", "dead", None], loads_again=True)  # the last one is of its stream model
    watch.run("a")
    assert (watch.loaded, watch.restarts) == (["a"], 0)
    watch = Watched(["what is a ping?"] * 6, loads_again=True)
    watch.run("a")
    assert (watch.loaded, watch.restarts) == ([], 0)


def test_the_server_is_restarted_where_a_dead_plain_model_blocks_its_stream_model():
    watch = Watched([None, "dead", "dead", "no answer within 10 s"], loads_again=True)
    watch.run("a")
    assert (watch.loaded, watch.restarts) == ([], 1)
    assert watch.said == ["a and a_stream do not answer (dead): the server is restarted"]


def test_a_process_that_triton_knows_to_have_ended_is_not_asked_twice():
    watch = Watched([None, "Stub process 'a_stream_0_0' is not healthy."], loads_again=True)
    watch.run()
    assert (watch.loaded, watch.restarts) == (["a_stream"], 0)
