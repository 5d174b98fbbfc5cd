"""What a run reads of its scheduler: its steps, the noise at each, and which is the present one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch


class Schedule:
    """The steps that one call of a pipeline goes through, and which of them the present one is.

    A pipeline may run a part of its scheduler's timesteps: with `strength` it leaves the first ones out, and says so to
    the scheduler (`begin_index`) or only to itself. How many it runs it writes down before its first step
    (`_num_timesteps`, diffusers 0.42.0).

    Args:
        scheduler: of the request, with its timesteps set; see `counting`.
        num_steps: how many the pipeline says that it runs, or None.

    Attributes:
        num_steps: how many it runs.
    """

    def __init__(self, scheduler: Any, num_steps: int | None) -> None:
        self._scheduler = scheduler
        self._timesteps = scheduler.timesteps
        self._scheduled: list[float] = scheduler.timesteps.tolist()  # the only time that the host reads them
        begin = getattr(scheduler, "begin_index", None)
        after = len(self._scheduled) - (begin or 0)
        self.num_steps = num_steps if num_steps and 0 < num_steps <= after else after
        self._first = len(self._scheduled) - self.num_steps if begin is None else begin
        self._begun = False  # whether the first step has been seen
        self._origin: int | None = None  # the scheduler's index at the first step, once it counts

    def is_of(self, scheduler: Any) -> bool:
        """Whether a scheduler has these timesteps still."""
        return scheduler is self._scheduler and scheduler.timesteps is self._timesteps

    def step(self) -> int:
        """The present step, from 0."""
        index = self._scheduler.step_index
        if index is None:
            self._begun = True
            return 0
        if self._origin is None:  # some schedulers count from before their first step, most from after it
            self._origin = index - self._begun
        return index - self._origin

    def timestep(self, step: int) -> float | None:
        """The timestep of a step; None where the schedule has no such step."""
        at = self._first + step
        return self._scheduled[at] if at < len(self._scheduled) else None

    def noise_levels(self) -> list[tuple[float, float]]:
        """(signal, noise) at the beginning of each step, latents = signal * clean + noise * gaussian.

        Schedulers of flow matching mix by sigma, the others keep the products of alphas (diffusers 0.42.0). Some of
        them keep either on the GPU, so all are read at once. A scheduler with neither has none.
        """
        scheduler, end = self._scheduler, self._first + self.num_steps
        if hasattr(scheduler, "alphas_cumprod") and not scheduler.config.get("use_flow_sigmas"):
            alphas, timesteps = scheduler.alphas_cumprod, self._timesteps[self._first : end]
            return [(kept**0.5, (1 - kept) ** 0.5) for kept in alphas[timesteps.long().to(alphas.device)].tolist()]
        if not hasattr(scheduler, "sigmas"):
            return []
        return [(1 - sigma, sigma) for sigma in scheduler.sigmas[self._first : end].tolist()]


def counting(scheduler: Any) -> Any:
    """Gives a scheduler a `step_index` if it has none, and returns it.

    Most of diffusers' schedulers have one. For DDIM and other old ones the class of this instance, which belongs to one
    request, is replaced by a subclass that counts `step` calls since `set_timesteps`.
    """
    if not hasattr(scheduler, "step_index"):
        kind: Any = type(scheduler)
        scheduler.__class__ = _counting(kind)
    return scheduler


@cache
def _counting(scheduler_class: Any) -> Any:
    class Counting(scheduler_class):  # type: ignore[misc]
        step_index: int | None = None

        @wraps(scheduler_class.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
            self.step_index = None
            return super().set_timesteps(*args, **kwargs)

        @wraps(scheduler_class.step)  # pipelines look for `eta` among its parameters
        def step(self, *args: Any, **kwargs: Any) -> Any:
            result = super().step(*args, **kwargs)
            self.step_index = (self.step_index or 0) + 1
            return result

    for name in ("__name__", "__qualname__", "__module__"):  # errors of diffusers name the class
        setattr(Counting, name, getattr(scheduler_class, name))
    return Counting


@dataclass(frozen=True)
class SolverStep:
    """One call of a scheduler's `step`, which has not been done yet.

    Attributes:
        output: the transformer's output, after guidance.
        run: does the step with this output or another one, and returns what `step` returns.
        tried: the next latents for an output, without doing the step.
    """

    output: torch.Tensor
    run: Callable[[torch.Tensor], Any]
    tried: Callable[[torch.Tensor], torch.Tensor]


def intercept(scheduler: Any, on_step: Callable[[SolverStep], Any]) -> None:
    """Has `on_step` do the steps of a scheduler, which belongs to one request: it returns what `step` returns."""
    kind: Any = type(scheduler)

    class Intercepted(kind):  # type: ignore[misc]
        @wraps(kind.step)
        def step(self, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            def tried(output: torch.Tensor) -> torch.Tensor:
                generators = _generators((*args, *kwargs.values()))
                states = [each.get_state() for each in generators]
                result = kind.step(copy.deepcopy(self), output, *args, **kwargs)
                for generator, state in zip(generators, states, strict=True):
                    generator.set_state(state)
                return next_latents(result)

            return on_step(SolverStep(model_output, lambda output: kind.step(self, output, *args, **kwargs), tried))

    scheduler.__class__ = Intercepted


def _generators(arguments: Iterable[Any]) -> list[torch.Generator]:
    """Those among arguments, and in their lists."""
    flat = [one for each in arguments for one in (each if isinstance(each, list | tuple) else (each,))]
    return [each for each in flat if isinstance(each, torch.Generator)]


def next_latents(result: Any) -> torch.Tensor:
    """The latents in what a scheduler's `step` returns."""
    return result[0] if isinstance(result, tuple) else result.prev_sample
