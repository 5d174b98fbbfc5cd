"""The search for full steps: simulated annealing against a score of whole runs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Steps = tuple[int, ...]

_BEGIN, _END = 0.6, 0.03  # the temperatures, in dB
_TWO = 0.3  # the share of tries that move two full steps
_ELSEWHERE = 0.1  # the share of long moves that put a full step anywhere
_FINE = 0.6  # the share of the tries after which moves are short
_FAR, _NEAR = (-3, -2, -1, 1, 2, 3), (-2, -1, 1, 2)


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        steps: the full steps with the lowest score.
        score: theirs, in dB.
    """

    steps: Steps
    score: float


def anneal(
    score: Callable[[Steps, Steps], float],
    start: Steps,
    num_steps: int,
    tries: int,
    *,
    fixed: frozenset[int] = frozenset({0}),
    seed: int = 0,
    on_try: Callable[[int, float], None] = lambda tried, best: None,
) -> Found:
    """Moves full steps at random, and keeps a move that raises the score with a probability that falls.

    As BudCache (arXiv 2606.13496) it fixes the number of full steps and compares whole runs with the uncached one. The
    error of single forecasts, which would allow an exact search, does not rank schedules (docs/quality.md).

    Args:
        score: of full steps, in dB, lower is better. Its second argument are the steps that the search is at, from
            which these differ by few.
        start: the full steps to begin with, ascending from 0.
        num_steps: of the run.
        tries: how many schedules are scored after the first; those that come up again count too.
        fixed: steps of `start` that stay.
        seed: of the moves; the same search with the same scores finds the same.
        on_try: called after each with how many were tried and the best score.
    """
    chance = random.Random(seed)
    at, here = start, score(start, start)
    best, best_score = at, here
    known = {at: here}
    if fixed >= {*start}:
        return Found(best, best_score)
    for tried in range(1, tries + 1):
        progress = (tried - 1) / tries
        steps = _moved(chance, at, num_steps, fixed, _NEAR if progress > _FINE else _FAR)
        if steps not in known:
            known[steps] = score(steps, at)
        there = known[steps]
        if there < here or chance.random() < math.exp((here - there) / (_BEGIN * (_END / _BEGIN) ** progress)):
            at, here = steps, there
            if here < best_score:
                best, best_score = at, here
        on_try(tried, best_score)
    return Found(best, best_score)


def _moved(chance: random.Random, steps: Steps, num_steps: int, fixed: frozenset[int], moves: Sequence[int]) -> Steps:
    """Other full steps, of which one or two have been moved at random."""
    free = [place for place, step in enumerate(steps) if step not in fixed]
    while True:
        moved = list(steps)
        for _ in range(2 if chance.random() < _TWO else 1):
            place = chance.choice(free)
            moved[place] += chance.choice(moves)
            if moves is _FAR and chance.random() < _ELSEWHERE:
                moved[place] = chance.randrange(num_steps)
        moved.sort()
        inside = moved[0] >= 0 and moved[-1] < num_steps
        if tuple(moved) != steps and inside and all(a < b for a, b in pairwise(moved)):
            return tuple(moved)
