"""What requests cost, learnt from those that have ended."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plugin.request import GenerationRequest

_NEW = 0.3  # weight of the latest request in the averages


@dataclass(frozen=True)
class Costs:
    """Seconds of a request's parts: a full step, a forecast step, and all else together."""

    full_s: float
    forecast_s: float
    rest_s: float

    def seconds(self, full: int, num_steps: int) -> float:
        """Of a request with that many full steps among all its steps."""
        return self.rest_s + full * self.full_s + (num_steps - full) * self.forecast_s

    def most_full_steps(self, within_s: float, num_steps: int) -> int:
        """How many full steps a request of `num_steps` may have to take no longer than that; below 0 where none may."""
        dearer_s = self.full_s - self.forecast_s
        spare_s = within_s - self.seconds(0, num_steps)
        if dearer_s <= 0:  # measured beside others: a forecast step may look the dearer one
            return num_steps if self.seconds(num_steps, num_steps) <= within_s else -1
        return min(num_steps, math.floor(spare_s / dearer_s + 1e-9))


class CostModel:
    """What requests of each size have cost: moving averages, and the least; used by any thread.

    They are taken from whole requests beside others, so the waiting for engine calls is in the averages. A request that
    will be alone is judged by the least cost: averages of a busy time would refuse it, and nothing would correct them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._average: dict[tuple[object, ...], Costs] = {}
        self._least: dict[tuple[object, ...], Costs] = {}

    def observe(self, request: GenerationRequest, steps: Sequence[tuple[str, float]], worked_s: float) -> None:
        """Takes in a request that has ended well.

        Args:
            request: the request that ended.
            steps: kind ("full" or "forecast") and seconds of each step.
            worked_s: seconds from the start of the work to the end.
        """
        full, forecast = ([seconds for kind, seconds in steps if kind == wanted] for wanted in ("full", "forecast"))
        if not full:
            return
        full_s = sum(full) / len(full)
        rest_s = max(0.0, worked_s - sum(full) - sum(forecast))
        with self._lock:
            key = _key(request)
            before = self._average.get(key)
            forecast_s = sum(forecast) / len(forecast) if forecast else before.forecast_s if before else full_s
            latest = Costs(full_s, forecast_s, rest_s)
            self._average[key] = _each(lambda old, new: (1 - _NEW) * old + _NEW * new, before or latest, latest)
            self._least[key] = _each(min, self._least.get(key, latest), latest)

    def seconds(self, request: GenerationRequest, *, alone: bool = False) -> float | None:
        """What a request is expected to take once it runs, with all full steps that audits may add; None before one of
        its size has ended.

        Args:
            request: a valid request.
            alone: whether no other request runs.
        """
        costs = self.of(request, alone=alone)
        if costs is None:
            return None
        full = request.cache.most_full_steps(request.num_steps)
        return costs.seconds(full, request.num_steps)

    def of(self, request: GenerationRequest, *, alone: bool = False) -> Costs | None:
        """The parts of what a request of this size is expected to take; None before one of its size has ended."""
        with self._lock:
            return (self._least if alone else self._average).get(_key(request))


def _key(request: GenerationRequest) -> tuple[object, ...]:
    scale = request.guidance_scale
    guided = scale > 0, scale == 1, scale > 1, request.negative_prompt is not None  # models differ in where it begins
    return request.height, request.width, request.num_frames, *guided, request.task, len(request.pictures)


def _each(of: Callable[[float, float], float], one: Costs, other: Costs) -> Costs:
    return Costs(of(one.full_s, other.full_s), of(one.forecast_s, other.forecast_s), of(one.rest_s, other.rest_s))
