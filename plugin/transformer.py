"""The stand-in for a pipeline's transformer: one per request, computing at full steps and forecasting at the others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from plugin.engines.base import Engine
from plugin.families.base import Family, Inputs
from taylorseer import CacheConfig, CacheSession, StepKind


class StepObserver:
    """Follows one run; the methods do nothing here. What they raise ends the run and reaches the pipeline's caller."""

    def step_started(self, step: int, num_steps: int) -> None:
        """Called before the first transformer call of each step."""

    def step_computed(self, step: int, kind: StepKind, latents: torch.Tensor, output: torch.Tensor) -> None:
        """Called after each transformer call.

        Args:
            step: the step index.
            kind: whether the blocks ran.
            latents: what the transformer was given.
            output: what it returned, of the same shape.
        """


@dataclass
class _Branch:
    """One guidance branch of one run."""

    name: str
    key: torch.Tensor | None  # keeps the tensor alive, so that its identity stays its own
    constants: dict[str, torch.Tensor] = field(default_factory=dict)


class ForecastingTransformer:
    """Takes the place of a diffusers transformer in one request's pipeline.

    At a full step it runs embed, the engine and finish; at a forecast step only the forecast and finish. The step comes
    from the request's own scheduler, the guidance branch from `cache_context` or, in pipelines that open none, from the
    identity of the text embedding. A new schedule (`scheduler.set_timesteps`) begins a new cache.

    Args:
        family: the shared transformer's family.
        engine: runs the block stack.
        scheduler: the request's own scheduler, one that tells its `step_index`.
        cache: the cache settings.
        observer: follows the run.

    Attributes:
        config: the diffusers transformer's configuration.
        dtype: its dtype.
        device: its device.
        session: the cache of the present run; None before its first step.
    """

    def __init__(
        self,
        family: Family,
        engine: Engine,
        scheduler: Any,
        cache: CacheConfig,
        observer: StepObserver | None = None,
    ) -> None:
        if not hasattr(scheduler, "step_index"):
            raise TypeError(f"scheduler is a {type(scheduler).__name__}, must be one that tells its step_index")
        self._family = family
        self._engine = engine
        self._scheduler = scheduler
        self._cache = cache
        self._observer = observer or StepObserver()
        self._signature = inspect.signature(family.transformer.forward)
        self.config = family.transformer.config
        self.dtype: torch.dtype = family.transformer.dtype  # type: ignore[assignment]
        self.device: torch.device = family.transformer.device  # type: ignore[assignment]
        self.session: CacheSession | None = None
        self._timesteps: torch.Tensor | None = None
        self._branches: list[_Branch] = []
        self._context: str | None = None
        self._last_step = -1

    @contextmanager
    def cache_context(self, name: str, **_: Any) -> Iterator[None]:
        """Names the guidance branch of the calls inside, as in diffusers' CacheMixin."""
        self._context = name
        try:
            yield
        finally:
            self._context = None

    def __call__(self, *args: Any, **kwargs: Any) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """The diffusers transformer's forward: same arguments, same result.

        Raises:
            ValueError: the call uses something that the family does not serve.
        """
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        inputs = bound.arguments
        session, step = self._current()
        if step != self._last_step:
            self._last_step = step
            self._observer.step_started(step, session.num_steps)
        branch = self._branch(inputs)
        kind = session.kind(step, branch.name)
        condition = self._family.condition(inputs, branch.constants)
        if kind is StepKind.FULL:
            features = self._engine.run(self._family.embed(inputs, condition))
            session.write(step, branch.name, features)
        else:
            features = session.forecast(step, branch.name)
        output = self._family.finish(features, condition)
        self._observer.step_computed(step, kind, inputs["hidden_states"], output)
        return Transformer2DModelOutput(sample=output) if inputs["return_dict"] else (output,)

    def _current(self) -> tuple[CacheSession, int]:
        """The run that the scheduler is in, and the index of its step counted from where the run began."""
        scheduler = self._scheduler
        begin = scheduler.begin_index or 0
        if self.session is None or scheduler.timesteps is not self._timesteps:
            self._timesteps = scheduler.timesteps
            self._branches.clear()
            self._last_step = -1
            self.session = CacheSession(self._cache, len(scheduler.timesteps) - begin)
        return self.session, (begin if scheduler.step_index is None else scheduler.step_index) - begin

    def _branch(self, inputs: Inputs) -> _Branch:
        key = None if self._context is not None else self._family.branch_key(inputs)
        for branch in self._branches:
            if branch.name == self._context if key is None else branch.key is key:
                return branch
        branch = _Branch(self._context or f"branch {len(self._branches)}", key)
        self._branches.append(branch)
        return branch
