"""The stand-in for a pipeline's transformer: one per request, computing at full steps and forecasting at the others."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from plugin.denoising.overlap import Later, LateTensor, Look
from plugin.denoising.schedulers import Schedule, counting
from plugin.denoising.unserved import NotServed
from plugin.engines.base import Engine
from plugin.families.base import BlockInputs, Constants, Family, Inputs, Step
from taylorseer import CacheConfig, CacheSession, StepKind

_READING = ("get_", "is_", "has_", "num_", "active_adapters")  # begin the names of methods that change nothing


class StepObserver:
    """Follows one run; the methods do nothing here. What they raise ends the run and reaches the pipeline's caller."""

    def step_started(self, step: int, num_steps: int, latents: torch.Tensor) -> None:
        """Called before the first transformer call of each step with what the transformer is given."""

    def step_computed(self, step: int, kind: StepKind) -> None:
        """Called after each transformer call; `kind` says whether the blocks ran."""


@dataclass(eq=False)
class Branch:
    """One guidance branch of one run.

    Attributes:
        name: as `cache_context` names it, or "branch"; with a number where a step has several calls of that name.
        constants: what the family keeps from step to step.
        shapes: of the latest call, as `Family.shapes` tells them.
        forecast: the latest one, whose memory the next one takes.
        look: of what the latest call has returned, where it could be returned before it is computed.
        later: the latest call that was.
    """

    name: str
    constants: Constants = field(default_factory=dict)
    shapes: object = None
    forecast: torch.Tensor | None = None
    look: Look | None = None
    later: Later | None = None

    def settle(self) -> None:
        """Waits for the call before; raises what nobody has seen of it."""
        if self.later is not None:
            later, self.later = self.later, None
            later.result()


@dataclass(frozen=True)
class StepCall:
    """Where in its run a call of the transformer is.

    Attributes:
        step: counted from where the run began.
        branch: the guidance branch.
        timestep: as the scheduler has it, known to the host; None where the schedule has no such step.
    """

    step: int
    branch: Branch
    timestep: float | None


@dataclass(eq=False)
class DenoisingRun:
    """One request's way through the steps, shared by the stand-ins of its transformers: which step and branch a call
    is, and the cache of the run.

    A branch is known by its place in the step: the first call, the second one, of each name. Not by its arguments,
    which callbacks may replace at each step.

    Args:
        pipe: the request's own pipeline; its scheduler may be replaced between calls.
        cache: the cache settings.
        observer: follows the run.

    Attributes:
        session: the cache; it begins with the first call of a schedule, and again with another schedule.
    """

    pipe: Any
    cache: CacheConfig
    observer: StepObserver = field(default_factory=StepObserver)
    session: CacheSession = field(init=False)
    _schedule: Schedule | None = field(default=None, init=False)
    _branches: dict[str, Branch] = field(default_factory=dict, init=False)
    _calls: Counter[str] = field(default_factory=Counter, init=False)  # of the present step, by name
    _context: str | None = field(default=None, init=False)
    _expected: int = field(default=0, init=False)  # calls of a step, going by the one before
    _last_step: int = field(default=-1, init=False)
    _family: Family | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.session = CacheSession(self.cache)

    @contextmanager
    def context(self, name: str) -> Iterator[None]:
        """Names the guidance branch of the calls inside."""
        self._context = name
        try:
            yield
        finally:
            self._context = None

    def enter(self, family: Family, inputs: Inputs) -> StepCall:
        """Where the present call of a transformer is.

        Where another transformer takes over in the middle of a run, as Wan2.2's second expert does, the anchors of the
        first are dropped.
        """
        schedule = self._present_schedule()
        if self._family is not family:
            self._family = family
            self._branches.clear()
            self.session.clear()
        step = schedule.step()
        if step != self._last_step:
            self._last_step = step
            self._expected = self._calls.total()
            self._calls.clear()
            self.observer.step_started(step, self.session.num_steps, family.latents(inputs))
        return StepCall(step, self._branch(), schedule.timestep(step))

    def expects_another_call(self) -> bool:
        """Whether the present call is not the last one of its step, going by the step before."""
        return self._calls.total() < self._expected

    def settle(self) -> None:
        """Waits for calls that were returned before they were computed, whatever their end."""
        for branch in self._branches.values():
            if branch.later is not None:
                branch.later.wait()

    def noise_levels(self) -> list[tuple[float, float]]:
        """(signal, noise) at the beginning of each step of the run; see `Schedule.noise_levels`."""
        return self._present_schedule().noise_levels()

    def _present_schedule(self) -> Schedule:
        scheduler, schedule = self.pipe.scheduler, self._schedule
        if schedule is None or not schedule.is_of(scheduler):
            schedule = self._schedule = Schedule(counting(scheduler), getattr(self.pipe, "_num_timesteps", None))
            self._last_step = -1
            self._family = None
            self._calls.clear()
            levels = schedule.noise_levels() if self.cache.needs_noise else None
            self.session.begin(schedule.num_steps, levels)
        return schedule

    def _branch(self) -> Branch:
        name = self._context or "branch"
        self._calls[name] += 1
        if self._calls[name] > 1:
            name = f"{name} {self._calls[name]}"
        return self._branches.setdefault(name, Branch(name))


class ForecastingTransformer(nn.Module):
    """Takes the place of a diffusers transformer in one request's pipeline.

    At a full step it runs embed, the engine and finish; at a forecast step only the forecast and finish. The step is
    counted by the request's own scheduler; the guidance branch comes from `cache_context` and the place in the step.

    The features of a full step are computed in place where that can be: `session.reserve` gives the memory that the
    anchor will keep, the engine may write into it (`out`), and `session.write` sees by its address that there is
    nothing left to copy. An engine that returns memory of its own has it copied.

    It is a module, so that a pipeline finds its device and a caller can hook it, for this request alone.

    Args:
        family: the shared transformer's family.
        engine: runs the block stack.
        run: the request's way through the steps; a pipeline of two transformers has two stand-ins on one run.
        overlaps: whether calls of several guidance branches are made at once, where a step has several.

    Attributes:
        config: the diffusers transformer's configuration.
        dtype: its dtype.
        device: its device.
    """

    def __init__(self, family: Family, engine: Engine, run: DenoisingRun, *, overlaps: bool = False) -> None:
        super().__init__()
        # Not as attributes of a module, which would be looked for among its parts.
        self.__dict__.update(_family=family, _engine=engine, _run=run)
        # What an audit of one branch says must not depend on which of them is computed first.
        self._overlaps = overlaps and run.cache.max_error is None
        self._signature = family.signature
        empty = inspect.Parameter.empty
        parameters = self._signature.parameters.values()
        self._defaults = {each.name: each.default for each in parameters if each.default is not empty}
        self.config = family.transformer.config
        self.dtype = family.dtype
        self.device = family.device

    def _arguments(self, *args: Any, **kwargs: Any) -> Inputs:
        """The arguments of a call of forward by name, defaults included."""
        inputs = {**self._defaults, **kwargs}
        if not args and inputs.keys() == self._signature.parameters.keys():  # as pipelines call it; 0.05 ms cheaper
            return inputs
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    @property
    def session(self) -> CacheSession:
        """The cache of the present run."""
        return self._run.session

    def cache_context(self, name: str, **_: Any) -> AbstractContextManager[None]:
        """Names the guidance branch of the calls inside, as in diffusers' CacheMixin."""
        return self._run.context(name)

    def __getattr__(self, name: str) -> Any:
        """What else a pipeline reads of its transformer, for example HiDream's `max_seq`. Methods that would change the
        shared module raise `NotServed`."""
        if name.startswith("_"):
            raise AttributeError(f"a request's transformer has no {name}")
        value = getattr(self._family.transformer, name)
        if inspect.ismethod(value) and not name.startswith(_READING):
            raise NotServed(
                f"{name} of a request's transformer would change other requests too: call it on the pipeline before "
                "PipelineHost is made"
            )
        return value

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Of the shared transformer, to be read."""
        return self._family.transformer.parameters(recurse)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> NoReturn:
        raise NotServed("a request's transformer cannot be moved or cast: do that before PipelineHost is made")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The diffusers transformer's forward: same arguments, same result.

        Raises:
            ValueError: the call uses something that the family does not serve.
        """
        inputs = self._arguments(*args, **kwargs)
        call = self._run.enter(self._family, inputs)
        branch = call.branch
        branch.settle()
        self._follow_shapes(branch, inputs)
        kind = self._run.session.kind(call.step, branch.name)
        compute = partial(self._output, inputs, call, kind)
        if self._overlaps and kind is StepKind.FULL and branch.look is not None and self._run.expects_another_call():
            branch.later = Later(compute)
            return (LateTensor(branch.look, branch.later),)
        output = compute()
        branch.look = Look.of(output)
        return output

    def _output(self, inputs: Inputs, call: StepCall, kind: StepKind) -> Any:
        """The output of one call; beside it, that of another branch may be computed."""
        step, branch, session = call.step, call.branch, self._run.session

        def features(embed: Callable[[], BlockInputs]) -> torch.Tensor:
            if kind is StepKind.FULL:
                blocks = self._family.completed(embed()) if self._family.completes else embed()
                computed = self._engine.run(blocks, session.reserve(step, branch.name, blocks["hidden_states"]))
                session.write(step, branch.name, computed)
                return computed
            forecast = session.forecast(step, branch.name, branch.forecast)
            if forecast.device.type == "cpu":  # large memory that is new costs more there than what is written to it
                branch.forecast = forecast
            return forecast

        output = self._family.forward(inputs, branch.constants, Step(call.timestep, kind is StepKind.FULL, features))
        self._run.observer.step_computed(step, kind)
        return output

    def _follow_shapes(self, branch: Branch, inputs: Inputs) -> None:
        """Drops what is known of a branch where a call has other shapes than the one before."""
        shapes = self._family.shapes(inputs)
        if branch.shapes is not None and branch.shapes != shapes:
            self._run.session.forget(branch.name)
            branch.constants, branch.forecast, branch.look = {}, None, None
        branch.shapes = shapes
