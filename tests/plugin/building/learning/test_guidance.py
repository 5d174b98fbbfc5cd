"""What the scheduler is given at a forecast step, and calls of real schedulers that are tried before they are done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from plugin.building.learning.guidance import Forecast, StepProblem, weighted
from plugin.denoising.schedulers import SolverStep, counting, intercept, next_latents

Result = TypeVar("Result")
SHAPE = (2, 4, 3, 5)  # of the latents of two requests
SCALE = 3.5
WEIGHTS, OTHER = np.array([-0.5, 1.5]), np.array([0.2, 0.7])


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def euler() -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    return scheduler


def at_step(scheduler: Any, output: torch.Tensor, make: Callable[[SolverStep], Result]) -> Result:
    """What is made of the scheduler's first step, before it is done."""
    made: list[Result] = []

    def on_step(solver: SolverStep) -> Any:
        made.append(make(solver))
        return solver.run(solver.output)

    intercept(scheduler, on_step)
    scheduler.step(output, scheduler.timesteps[0], random(*output.shape, seed=9), return_dict=False)
    return made[0]


def guided(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    return uncond + SCALE * (cond - uncond)


def branch(anchors: Sequence[torch.Tensor], weights: np.ndarray) -> torch.Tensor:
    """A sum of two anchors, through a transformer's end that is not linear."""
    return torch.tanh(weights[0] * anchors[0] + weights[1] * anchors[1])


COND, UNCOND = ([random(*SHAPE, seed=seed) for seed in seeds] for seeds in ((1, 2), (3, 4)))


def tanh(features: torch.Tensor) -> Any:
    return (torch.tanh(features),)


def two_calls(respond: Callable[[torch.Tensor], Any] = tanh) -> list[Forecast]:
    return [Forecast(0, tuple(COND), respond), Forecast(1, tuple(UNCOND), respond)]


def problem_of(
    calls: list[Forecast], given: torch.Tensor, wanted: torch.Tensor, outputs: list[Any] | None = None
) -> StepProblem:
    made = [call.output(WEIGHTS) for call in calls] if outputs is None else outputs
    return at_step(euler(), given, lambda solver: StepProblem(calls, made, WEIGHTS, solver, wanted))


def given_with(weights: np.ndarray) -> torch.Tensor:
    return guided(branch(COND, weights), branch(UNCOND, weights))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # float32 numbers below 20, and coefficients with a ridge of 1e-9
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [
        lambda features: (torch.tanh(features),),
        lambda features: SimpleNamespace(sample=torch.tanh(features)),
        lambda features: ([*torch.tanh(features)],),
        lambda features: (torch.cat([torch.tanh(features), features], dim=1),),
    ],
    ids=["tuple", "sample", "list of requests", "with a variance"],
)
def test_the_output_with_other_weights_is_that_of_guidance(form):
    problem = problem_of(two_calls(form), given_with(WEIGHTS), torch.zeros(SHAPE))
    assert_close(problem.output(WEIGHTS), given_with(WEIGHTS))
    assert_close(problem.output(OTHER), given_with(OTHER))
    assert_close(problem.given(problem.outputs(OTHER)), given_with(OTHER))


def test_one_branch_is_given_as_it_is():
    calls = [Forecast(0, tuple(COND), tanh)]
    problem = problem_of(calls, branch(COND, WEIGHTS), torch.zeros(SHAPE))
    assert_close(problem.output(OTHER), branch(COND, OTHER))


def test_a_branch_that_was_computed_stays_as_it_is():
    """Guidance that began at this step: its second branch is no forecast."""
    computed, calls = random(*SHAPE, seed=5), two_calls()[:1]
    given = guided(branch(COND, WEIGHTS), computed)
    outputs = [calls[0].output(WEIGHTS), (computed,)]
    problem = problem_of(calls, given, torch.zeros(SHAPE), outputs)
    assert_close(problem.output(OTHER), guided(branch(COND, OTHER), computed))
    assert problem.outputs(OTHER)[1][0] is computed


def test_branches_in_one_call_and_rows_that_are_given_twice():
    """As DiT: one call of both branches, and a scheduler that gets the guided rows once for each."""
    anchors = tuple(torch.cat(pair) for pair in zip(COND, UNCOND, strict=True))
    problem = problem_of([Forecast(0, anchors, tanh)], given_with(WEIGHTS).repeat(2, 1, 1, 1), torch.zeros(SHAPE))
    assert problem.target.shape == SHAPE
    assert_close(problem.output(OTHER), given_with(OTHER))
    again = problem.given(problem.outputs(OTHER))
    assert_close(again, given_with(OTHER).repeat(2, 1, 1, 1))
    assert torch.equal(again[:2], again[2:])


def test_what_is_given_has_the_schedulers_dtype():
    given = given_with(WEIGHTS).bfloat16()
    problem = problem_of(two_calls(), given, torch.zeros(SHAPE))
    assert problem.given(problem.outputs(OTHER)).dtype == torch.bfloat16
    assert problem.output(OTHER).dtype == torch.float32


def test_the_target_brings_euler_to_the_uncached_latents():
    """next = latents + dt * output, so the output must change by (wanted - next) / dt."""
    given, wanted, latents = given_with(WEIGHTS), random(*SHAPE, seed=7), random(*SHAPE, seed=9)
    problem = problem_of(two_calls(), given, wanted)
    sigmas = euler().sigmas
    dt = float(sigmas[1] - sigmas[0])
    assert -0.1 < dt < -0.01
    expected = given + (wanted - (latents + dt * given)) / dt
    # float32 numbers, divided by a step of 0.04
    torch.testing.assert_close(problem.target, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize(
    "make",
    [
        euler,
        lambda: counting(DDIMScheduler(clip_sample=False)),
        lambda: UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        lambda: UniPCMultistepScheduler(prediction_type="epsilon"),
    ],
    ids=["euler", "ddim", "unipc flow", "unipc"],
)
def test_the_target_brings_every_solver_to_the_uncached_latents(make, before):
    scheduler = make()
    scheduler.set_timesteps(8)
    latents, solvers = random(*SHAPE, seed=9), []
    intercept(scheduler, lambda solver: solvers.append(solver) or solver.run(solver.output))
    for step in range(before):
        output = random(*SHAPE, seed=20 + step)
        latents = next_latents(scheduler.step(output, scheduler.timesteps[step], latents))
    seen: list[float] = []

    def on_step(solver: SolverStep) -> Any:
        wanted = solver.tried(solver.output) + 0.1 * random(*SHAPE, seed=8)
        outputs = [call.output(WEIGHTS) for call in two_calls()]
        problem = StepProblem(two_calls(), outputs, WEIGHTS, solver, wanted)
        seen.append(float((solver.tried(problem.target) - wanted).abs().max()))
        return solver.run(solver.output)

    intercept(scheduler, on_step)
    scheduler.step(given_with(WEIGHTS), scheduler.timesteps[before], latents)
    assert seen[0] < 1e-4  # float32 latents below 10, over a division by the slope


def test_where_nothing_is_given_nothing_is_wanted():
    """Branches that cancel each other: no change of an output of 0 says what the solver makes of it."""
    problem = problem_of(two_calls(), torch.zeros(SHAPE), random(*SHAPE, seed=7))
    assert not problem.target.any()
    assert not problem.output(OTHER).any()


@pytest.mark.parametrize("shape", [(2, 60), (3, 4, 3, 5)])
def test_an_output_of_another_form_is_named(shape):
    with pytest.raises(
        ValueError, match=r"the transformer returns \(.*\) where the scheduler takes \(2, 4, 3, 5\): for"
    ):
        problem_of([], random(*SHAPE, seed=1), torch.zeros(SHAPE), [(torch.zeros(shape),)])


def test_a_weighted_sum_is_added_in_float32_and_returned_as_the_anchors_are():
    anchors = [each.bfloat16() for each in (*COND, UNCOND[0])]
    weights = np.array([100.0, -100.0, 0.25])
    expected = sum(weight * each.double() for weight, each in zip(weights, anchors, strict=True))
    found = weighted(anchors, weights)
    assert found.dtype == torch.bfloat16
    # one rounding to bfloat16, which keeps 8 bits; a sum in bfloat16 would be off by 1
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4)


def run_of(scheduler: Any, tries: int, **arguments: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The latents after each of six steps, and those that were tried before."""
    scheduler.set_timesteps(6)
    tried: list[torch.Tensor] = []

    def on_step(solver: SolverStep) -> Any:
        tried.extend(solver.tried(solver.output * (1 + place)) for place in range(tries))
        return solver.run(solver.output)

    intercept(scheduler, on_step)
    latents, made = random(*SHAPE, seed=0), []
    for step, timestep in enumerate(scheduler.timesteps):
        output = random(*SHAPE, seed=30 + step)
        latents = next_latents(scheduler.step(output, timestep, latents, **arguments))
        made.append(latents)
    return made, tried


def generators() -> dict[str, Any]:
    return {"eta": 1.0, "generator": torch.Generator().manual_seed(5)}


def lists_of_generators() -> dict[str, Any]:
    """As a batch has them."""
    return {"eta": 1.0, "generator": [torch.Generator().manual_seed(seed) for seed in (5, 6)]}


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (lambda: FlowMatchEulerDiscreteScheduler(), dict),
        (lambda: UniPCMultistepScheduler(), dict),
        (lambda: counting(DDIMScheduler()), dict),
        (lambda: counting(DDIMScheduler()), generators),
        (lambda: counting(DDIMScheduler()), lists_of_generators),
    ],
    ids=["euler", "unipc", "ddim", "ddim with a generator", "ddim with generators"],
)
def test_a_step_that_is_tried_changes_nothing(make, arguments):
    alone, _ = run_of(make(), 0, **arguments())
    made, tried = run_of(make(), 2, **arguments())
    assert all(torch.equal(a, b) for a, b in zip(made, alone, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tried[::2], made, strict=True)), "it is the step that is then done"
    assert not torch.equal(tried[1], made[0])


def test_an_intercepted_scheduler_is_what_pipelines_expect():
    """They look for `eta` among the parameters of `step`."""
    scheduler = counting(DDIMScheduler())
    intercept(scheduler, lambda solver: solver.run(solver.output))
    assert isinstance(scheduler, DDIMScheduler)
    assert "eta" in inspect.signature(scheduler.step).parameters
    assert inspect.signature(scheduler.step) == inspect.signature(DDIMScheduler().step)
    scheduler.set_timesteps(4)
    scheduler.step(torch.ones(SHAPE), scheduler.timesteps[0], torch.ones(SHAPE))
    assert scheduler.step_index == 1
