"""Whether what was learnt for one model helps another one: schedules and weights of several, each on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import say
from plugin.building.learning.batch import Batch, Steps
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
    of_even = even_steps(len(next(iter(subjects.values())).learn.targets), len(next(iter(subjects.values())).steps))
    rows = []
    for target, subject in subjects.items():
        rows.append({"model": target, "steps of": "even steps", **_figures(subject, of_even, None)})
        for source, other in subjects.items():
            rows.append({"model": target, "steps of": source, **_figures(subject, other.steps, other.learn)})
    for row in rows:
        say(str(row))
    return {"full_steps": len(of_even), "rows": rows}


def _figures(subject: Subject, steps: Steps, source: Batch | None) -> dict[str, float]:
    ways = {
        "chebyshev": of_predictor("chebyshev", 2),
        "fitted": of_rows(subject.learn.run(steps, StepByStep(ORDER)).weights),
    }
    if source is not None:
        ways["its weights"] = of_rows(source.run(steps, StepByStep(ORDER)).weights)
    held_out = subject.held_out
    return {name: float(held_out.distances(held_out.run(steps, way)).mean()) for name, way in ways.items()}
