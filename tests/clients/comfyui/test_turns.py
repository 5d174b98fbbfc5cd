"""Servers that take turns."""

from __future__ import annotations

import pytest


@pytest.fixture
def turns(module):
    clock = [0.0]
    made = module("turns").Turns(["a", "b", "c"], skipped_s=30, clock=lambda: clock[0])
    made.clock = clock
    return made


def test_each_begins_with_the_next_one(turns):
    assert [turns.take() for _ in range(4)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_one_that_does_not_answer_comes_last_for_some_time(turns):
    turns.skip("b")
    assert [turns.take()[0] for _ in range(4)] == ["a", "c", "a", "c"]
    assert turns.take()[-1] == "b"
    turns.clock[0] = 29.9
    assert turns.take()[-1] == "b"
    turns.clock[0] = 30.0
    assert "b" in {turns.take()[0] for _ in range(3)}


def test_one_that_answers_again_takes_its_turn(turns):
    turns.skip("b")
    turns.answers("b")
    assert {turns.take()[0] for _ in range(3)} == {"a", "b", "c"}


def test_where_none_answers_all_are_tried(turns):
    for url in "abc":
        turns.skip(url)
    assert sorted(turns.take()) == ["a", "b", "c"]
    assert {turns.take()[0] for _ in range(3)} == {"a", "b", "c"}
