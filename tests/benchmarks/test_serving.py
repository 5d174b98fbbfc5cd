"""The closed loops of `benchmarks.serving`, without a server."""

from __future__ import annotations

import pytest

from benchmarks.serving import in_turns

SIZES = ((64, 64), (48, 80))


class Asked:
    """Stands for a client: keeps what it is asked for."""

    def __init__(self, name: str, into: list[tuple[str, int, int]], fails: bool = False) -> None:
        self.name, self.into, self.fails = name, into, fails

    def generate(self, prompt: str, *, seed: int, height: int, width: int) -> None:
        if self.fails:
            raise ConnectionError("gone")
        self.into.append((self.name, seed, height))


def test_a_client_alone_goes_from_server_to_server_with_each_picture():
    asked: list[tuple[str, int, int]] = []
    rates = in_turns({way: [Asked(way, asked)] for way in ("a", "b")}, 3, SIZES)
    assert asked == [("a", 0, 64), ("b", 0, 64), ("b", 1, 48), ("a", 1, 48), ("a", 2, 64), ("b", 2, 64)]
    assert rates["a"] > 0 < rates["b"]


def test_clients_of_one_server_share_the_pictures():
    asked: list[tuple[str, int, int]] = []
    in_turns({way: [Asked(f"{way}{number}", asked) for number in range(2)] for way in ("a", "b")}, 5, SIZES)
    assert [name[0] for name, *_ in asked] == ["a"] * 5 + ["b"] * 5
    assert sorted(asked) == sorted((f"{way}{i % 2}", i, SIZES[i % 2][0]) for way in ("a", "b") for i in range(5))


def test_a_clients_error_is_the_measurements():
    with pytest.raises(ConnectionError, match="gone"):
        in_turns({"a": [Asked("a", []), Asked("b", [], fails=True)]}, 4, SIZES)
