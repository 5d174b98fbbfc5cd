"""Several requests as one batch through an unmodified pipeline, with any full steps and any forecast weights.

A run is replayed from an earlier one as far as both have the same full steps: the transformer then returns what it
returned before. So a search that moves one full step pays only for what comes after it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from plugin.building.from_text import task_from_text
from plugin.building.learning.guidance import Forecast, StepProblem
from plugin.denoising.host import PipelineHost
from plugin.denoising.picture_arguments import accepted, call_arguments
from plugin.denoising.schedulers import SolverStep, intercept, next_latents
from plugin.denoising.transformer import DenoisingRun, ForecastingTransformer
from plugin.engines.base import Engine
from plugin.families.base import BlockInputs, Family, Step
from plugin.request import GenerationRequest
from taylorseer import CacheConfig
from taylorseer.learnt import middle_noise
from taylorseer.predictors import Weights

Steps = tuple[int, ...]
_OFF = CacheConfig(interval=1)


@dataclass
class RunRecord:
    """What a run of a batch did; B requests.

    Attributes:
        full_steps: of the run.
        outputs: of each step, what each call of the transformer returned.
        anchors: by branch and step, (rows, *feature).
        weights: of each forecast step whose weights were fitted, of the newest anchors, oldest first.
        latents: (B, *latent) at the end.
    """

    full_steps: Steps
    outputs: dict[int, list[Any]] = field(default_factory=dict)
    anchors: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    weights: dict[int, Weights] = field(default_factory=dict)
    latents: torch.Tensor | None = None

    def with_weights(self, weights: Mapping[int, Weights]) -> RunRecord:
        """The same, with these as the weights of its forecast steps."""
        return replace(self, weights=dict(weights))

    def until(self, step: int, full_steps: Steps) -> RunRecord:
        """The beginning of a run with other full steps, which does the same in the steps before `step`."""
        return RunRecord(
            full_steps,
            {at: outputs for at, outputs in self.outputs.items() if at < step},
            {name: {at: each for at, each in kept.items() if at < step} for name, kept in self.anchors.items()},
            {at: weights for at, weights in self.weights.items() if at < step},
        )


class Gradients(Enum):
    """What is differentiated of a run besides its forecasts and the solver's steps."""

    NOTHING = "nothing"
    FULL_STEPS = "full steps"  # through the blocks, which compute once more on the way back: memory of one full step
    FORECASTS = "forecasts"  # nothing but the forecasts: full steps count as constants


class Weigher(Protocol):
    """Chooses the weights of a run.

    Attributes:
        fits: whether `fit` does more than to return what `begin` has chosen.
    """

    fits: bool

    def begin(self, step: int, anchor_steps: Steps) -> Weights | torch.Tensor:
        """The weights that a step's forecasts begin with: of the newest anchors, oldest first."""
        ...

    def fit(self, step: int, problem: StepProblem) -> Weights:
        """The weights that the step is done with; `problem.weights` to keep those of `begin`."""
        ...


class Batch:
    """Requests that a pipeline makes in one call, each with its own seed, up to their latents.

    Args:
        host: the loaded model; its packer is not used.
        requests: at least one; all alike but for prompt, negative prompt, class label and seed.
        max_sequence_length: text tokens, or None for the pipeline's default.
        rows: the most rows of one engine call; None for no limit.

    Attributes:
        size: the number of requests, B.
        num_steps: of a run.
        noise: over signal at its middle step; see `taylorseer.learnt.middle_noise`.
        targets: (B, *latent) of the uncached run after each step.

    Raises:
        ValueError: the model makes nothing from text alone.
    """

    def __init__(
        self,
        host: PipelineHost,
        requests: Sequence[GenerationRequest],
        max_sequence_length: int | None = None,
        rows: int | None = None,
    ) -> None:
        task = task_from_text(host.pipe)
        self.size = len(requests)
        self._host = host
        self._rows = rows
        self._requests = [replace(each, task=task) for each in requests]
        steps = [{"num_inference_steps": each.num_inference_steps} for each in self._requests]
        calls = [call_arguments(host.family, each, max_sequence_length) for each in self._requests]
        self._arguments = _together([call | also for call, also in zip(calls, steps, strict=True)])
        self.targets: list[torch.Tensor] = []
        self.num_steps = 0
        self._run(_Uncached(self))

    def run(
        self,
        full_steps: Steps,
        weigher: Weigher,
        before: RunRecord | None = None,
        gradients: Gradients = Gradients.NOTHING,
    ) -> RunRecord:
        """A run with these full steps.

        Args:
            full_steps: ascending from 0.
            weigher: chooses the weights of the forecast steps.
            before: an earlier run whose weights the same weigher would choose again; None for none.
            gradients: what of it can be differentiated with respect to the weights; the engine must be torch then.
        """
        known = before.until(_parting(before.full_steps, full_steps), full_steps) if before else RunRecord(full_steps)
        self._run(_Cached(self, known, weigher, gradients), gradients is not Gradients.NOTHING)
        return known

    def distances(self, record: RunRecord) -> torch.Tensor:
        """(B,) float64: how far each request's latents are from the uncached ones, as 10 log10 of the mean squared
        difference over the mean square of the uncached ones; lower is closer."""
        reference = self.targets[-1].double()
        assert record.latents is not None
        error = (record.latents.double() - reference).flatten(1).square().mean(1)
        power = reference.flatten(1).square().mean(1)
        return 10 * torch.log10((error / power).clamp_min(1e-12))

    def _run(self, director: _Director, differentiable: bool = False) -> None:
        pipe, run = self._host.prepare(_OFF)
        for name, family in self._host.families.items():
            engine = self._host.engines[name]
            pipe.__dict__[name] = _DirectedTransformer(name, family, engine, run, director, self._rows)
        intercept(pipe.scheduler, director.solver_step)
        call = type(pipe).__call__
        with torch.set_grad_enabled(differentiable):
            (inspect.unwrap(call) if differentiable else call)(  # diffusers wraps it in no_grad
                pipe,
                **accepted(pipe, self._arguments),
                generator=[torch.Generator("cpu").manual_seed(each.seed) for each in self._requests],
                output_type="latent",
            )
        self.num_steps, self.noise = run.session.num_steps, middle_noise(run.noise_levels())


class _Director:
    """Decides what each call of the transformer does, and each step of the scheduler."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def output(self, step: int, branch: str, forward: Callable[[Step], Any], compute: _Compute) -> Any:
        """What the transformer returns.

        Args:
            step: the step index.
            branch: names the transformer, the guidance branch and the shapes of the call.
            forward: the family's forward of the call.
            compute: runs the block stack.
        """
        raise NotImplementedError

    def solver_step(self, solver: SolverStep) -> Any:
        """Does the scheduler's step."""
        raise NotImplementedError


_Compute = Callable[[BlockInputs], torch.Tensor]


class _Uncached(_Director):
    """The uncached run: keeps the latents after each step."""

    def output(self, step: int, branch: str, forward: Callable[[Step], Any], compute: _Compute) -> Any:
        return forward(Step(None, True, lambda embed: compute(embed())))

    def solver_step(self, solver: SolverStep) -> Any:
        batch = self._batch
        result = solver.run(solver.output)
        batch.targets.append(next_latents(result)[: batch.size].clone())
        return result


class _Cached(_Director):
    """A run with forecasts, which goes on from where its record ends."""

    def __init__(self, batch: Batch, record: RunRecord, weigher: Weigher, gradients: Gradients) -> None:
        super().__init__(batch)
        self._gradients = gradients
        self._record = record
        self._weigher = weigher
        self._known = max(record.outputs, default=-1)
        self._step = -1
        self._played = 0
        self._calls: list[Forecast] = []
        self._weights: Weights | torch.Tensor | None = None

    def output(self, step: int, branch: str, forward: Callable[[Step], Any], compute: _Compute) -> Any:
        if step != self._step:
            self._step, self._played, self._weights = step, 0, None
            self._calls.clear()
        if step <= self._known:
            self._played += 1
            return self._record.outputs[step][self._played - 1]
        anchors = self._record.anchors.setdefault(branch, {})
        few = self._weights is not None and len(anchors) < len(self._weights)  # a branch that was left out at times
        if step in self._record.full_steps or not anchors or few:
            output = forward(Step(None, True, lambda embed: self._full(anchors, step, compute, embed())))
        else:
            output = self._forecast(step, anchors, forward)
        self._record.outputs.setdefault(step, []).append(output)
        return output

    def solver_step(self, solver: SolverStep) -> Any:
        step, output = self._step, solver.output
        if self._weights is not None and self._weigher.fits and step > self._known:
            assert not isinstance(self._weights, torch.Tensor)
            outputs = self._record.outputs[step]
            problem = StepProblem(self._calls, outputs, self._weights, solver, self._batch.targets[step])
            weights = self._record.weights[step] = self._weigher.fit(step, problem)
            if weights is not self._weights:
                outputs[:] = problem.outputs(weights)
                output = problem.given(outputs)
        result = solver.run(output)
        self._record.latents = next_latents(result)[: self._batch.size]
        return result

    def _full(
        self, anchors: dict[int, torch.Tensor], step: int, compute: _Compute, blocks: BlockInputs
    ) -> torch.Tensor:
        if self._gradients is Gradients.FULL_STEPS:
            features: torch.Tensor = checkpoint(compute, blocks, use_reentrant=False)
        else:
            with torch.no_grad():
                features = compute(blocks)
        anchors[step] = features.clone()  # engines reuse their memory
        return features

    def _forecast(self, step: int, anchors: Mapping[int, torch.Tensor], forward: Callable[[Step], Any]) -> Any:
        if self._weights is None:
            self._weights = self._weigher.begin(step, tuple(anchors))
        newest = tuple(anchors.values())[-len(self._weights) :]
        place = len(self._record.outputs.get(step, ()))
        call = Forecast(place, newest, lambda features: forward(Step(None, False, lambda embed: features)))
        self._calls.append(call)
        return call.output(self._weights)


class _DirectedTransformer(ForecastingTransformer):
    """Takes the transformer's place in a batch; a director decides what its calls do."""

    def __init__(
        self, name: str, family: Family, engine: Engine, run: DenoisingRun, director: _Director, rows: int | None
    ) -> None:
        super().__init__(family, engine, run)
        self.__dict__.update(_name=name, _director=director, _rows=rows)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._arguments(*args, **kwargs)
        call = self._run.enter(self._family, inputs)
        self._follow_shapes(call.branch, inputs)
        constants = call.branch.constants

        def forward(step: Step) -> Any:
            return self._family.forward(inputs, constants, replace(step, timestep=call.timestep))

        # Another transformer's features, or those of another shape, are no anchors of this call.
        branch = f"{self._name}, {call.branch.name}, {call.branch.shapes}"
        return self._director.output(call.step, branch, forward, self._compute)

    def _compute(self, blocks: BlockInputs) -> torch.Tensor:
        if self._family.completes:
            blocks = self._family.completed(blocks)
        axes, rows = self._family.block_axes, len(blocks["hidden_states"])
        most = self._rows or rows
        if rows <= most:
            return self._engine.run(blocks)
        parts = []
        for begin in range(0, rows, most):
            part = {
                name: each[begin : begin + most] if axes[name].get(0) == "batch" else each
                for name, each in blocks.items()
            }
            parts.append(self._engine.run(part).clone())
        return torch.cat(parts)


def _parting(old: Steps, new: Steps) -> int:
    """The first step at which two runs with these full steps differ."""
    for a, b in zip(old, new, strict=False):
        if a != b:
            return min(a, b)
    longer = old if len(old) > len(new) else new
    shorter = min(len(old), len(new))
    return longer[shorter] if len(longer) > shorter else longer[-1] + 10**6


def _together(arguments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of one call for several requests: texts and labels in lists, the rest as all have it.

    Raises:
        ValueError: they differ in something else.
    """
    merged: dict[str, Any] = {}
    for name, value in arguments[0].items():
        values = [each[name] for each in arguments]
        if all(isinstance(each, str) for each in values):
            merged[name] = values
        elif all(isinstance(each, list) for each in values):
            merged[name] = [one for each in values for one in each]
        elif any(each != value for each in values):
            raise ValueError(f"{name} differs between the requests of a batch, must be the same for all")
        else:
            merged[name] = value
    return merged
