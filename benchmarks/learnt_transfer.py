"""Whether what was learnt for one model helps another one: schedules and weights of several, each on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import say
from plugin.building.learning.batch import Batch, Steps, Weigher
from plugin.building.learning.weighers import StepByStep, of_predictor, of_rows
from taylorseer import even_steps

ORDER = 4


@dataclass(frozen=True)
class Subject:
    """A model, and the full steps that were found for it.

    Attributes:
        learn: requests that weights are fitted to.
        held_out: others, which the distance is measured on.
        steps: the full steps.
    """

    learn: Batch
    held_out: Batch
    steps: Steps


def measure_transfer(subjects: Mapping[str, Subject]) -> dict[str, Any]:
    """For each pair of models: the distance of the last latents in dB with the full steps of the first one, with
    chebyshev, with the weights of the first one, and with weights fitted for the second one on those steps."""
    first = next(iter(subjects.values()))
    of_even = even_steps(first.learn.num_steps, len(first.steps))
    fitted = {name: _fitted(each, each.steps) for name, each in subjects.items()}
    rows = []
    for target, subject in subjects.items():
        rows.append({"model": target, "steps of": "even steps", **_figures(subject, of_even)})
        for source, other in subjects.items():
            figures = _figures(subject, other.steps) | {"its weights": _distance(subject, other.steps, fitted[source])}
            rows.append({"model": target, "steps of": source, **figures})
    for row in rows:
        say(str(row))
    return {"full_steps": len(of_even), "rows": rows}


def _figures(subject: Subject, steps: Steps) -> dict[str, float]:
    ways = {"chebyshev": of_predictor("chebyshev", 2), "fitted": _fitted(subject, steps)}
    return {name: _distance(subject, steps, way) for name, way in ways.items()}


def _fitted(subject: Subject, steps: Steps) -> Weigher:
    return of_rows(subject.learn.run(steps, StepByStep(ORDER)).weights)


def _distance(subject: Subject, steps: Steps, weigher: Weigher) -> float:
    return float(subject.held_out.distances(subject.held_out.run(steps, weigher)).mean())
