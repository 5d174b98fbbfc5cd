"""The search for full steps, against scores whose best is known."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations, pairwise

import numpy as np
import pytest

from plugin.building.learning.annealing import Found, Steps, anneal
from taylorseer import even_steps

Score = Callable[[Steps, Steps], float]


def distance_to(wanted: Steps) -> Score:
    return lambda steps, near: float(sum(abs(a - b) for a, b in zip(steps, wanted, strict=True)))


@pytest.mark.parametrize("wanted", [(0, 1, 2, 11), (0, 8, 9, 10), (0, 3, 5, 7)])
def test_a_score_without_other_valleys_is_followed_to_its_best(wanted):
    found = anneal(distance_to(wanted), even_steps(12, 4), 12, 200)
    assert found == Found(wanted, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_a_rugged_table_is_found(seed):
    """165 schedules whose scores are chance beside a slope: a search that never went uphill would stay in a valley."""
    chance = np.random.default_rng(seed)
    table = {(0, *rest): sum(rest) / 20 + 0.4 * chance.random() for rest in combinations(range(1, 12), 3)}
    found = anneal(lambda steps, near: table[steps], (0, 4, 7, 11), 12, 600, seed=1)
    assert found.score == table[found.steps]
    assert found.score == min(table.values())


def test_a_search_goes_uphill_at_first_and_hardly_at_its_end():
    """Scores of chance alone, 0 to 0.5: most moves up are kept at a temperature of 0.6, and few at 0.03."""
    chance = np.random.default_rng(0)
    table: dict[Steps, float] = {}
    tried: list[tuple[Steps, Steps]] = []

    def score(steps: Steps, near: Steps) -> float:
        tried.append((steps, near))
        return table.setdefault(steps, 0.5 * chance.random())

    def kept(part: list[tuple[Steps, Steps]]) -> float:
        """The share of moves up that the search went on from."""
        up = [after == steps for (steps, near), (_, after) in pairwise(part) if table[steps] > table[near]]
        assert len(up) > 30
        return sum(up) / len(up)

    anneal(score, (0, 20, 40, 60), 100, 1000)
    assert kept(tried[1:200]) > 0.5
    assert kept(tried[-100:]) < 0.2


def test_the_same_seed_finds_the_same_and_another_one_goes_another_way():
    def way(seed: int) -> tuple[Found, list[Steps]]:
        seen: list[Steps] = []

        def score(steps: Steps, near: Steps) -> float:
            seen.append(steps)
            return distance_to((0, 2, 3, 9))(steps, near)

        return anneal(score, even_steps(12, 4), 12, 20, seed=seed), seen

    assert way(5) == way(5)
    assert way(5)[1] != way(6)[1]


def test_every_schedule_ascends_from_0_within_the_run_and_keeps_the_fixed_steps():
    seen: list[tuple[Steps, Steps]] = []

    def score(steps: Steps, near: Steps) -> float:
        seen.append((steps, near))
        return distance_to((0, 1, 2, 5))(steps, near)

    found = anneal(score, (0, 3, 5, 7), 9, 300, fixed=frozenset({0, 5}))
    assert found.steps == (0, 1, 2, 5)
    assert seen[0] == ((0, 3, 5, 7), (0, 3, 5, 7))
    for steps, near in seen:
        assert {0, 5} <= {*steps}
        assert len(steps) == 4
        assert all(a < b for a, b in pairwise(steps))
        assert steps[-1] < 9
        assert len({*steps} - {*near}) <= 2, "one move or two from where the search is"


def test_each_schedule_is_scored_once_and_each_try_is_told():
    scored: list[Steps] = []
    told: list[tuple[int, float]] = []

    def score(steps: Steps, near: Steps) -> float:
        scored.append(steps)
        return distance_to((0, 2, 4))(steps, near)

    found = anneal(score, (0, 3, 5), 6, 50, on_try=lambda tried, best: told.append((tried, best)))
    assert len({*scored}) == len(scored) <= 10, "there are ten schedules of three steps"
    assert [tried for tried, _ in told] == [*range(1, 51)]
    assert all(after <= before for (_, before), (_, after) in pairwise(told))
    assert told[-1][1] == found.score == 0


def test_without_tries_the_start_is_found():
    told: list[int] = []
    found = anneal(distance_to((0, 1)), (0, 5), 9, 0, on_try=lambda tried, best: told.append(tried))
    assert found == Found((0, 5), 4.0)
    assert told == []


def test_where_all_steps_are_fixed_there_is_nothing_to_search():
    found = anneal(distance_to((0, 1)), (0, 5), 9, 100, fixed=frozenset({0, 5}))
    assert found == Found((0, 5), 4.0)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Ends what takes longer."""

    def ended(*_: object) -> None:
        raise TimeoutError(f"this takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_where_no_step_can_move_there_is_nothing_to_search():
    """4 steps, as distilled models have, whose second expert takes over at 2: the free step is between that and the
    end."""
    with within(2):
        assert anneal(distance_to((0, 2, 3)), (0, 2, 3), 4, 10, fixed=frozenset({0, 2})) == Found((0, 2, 3), 0.0)
