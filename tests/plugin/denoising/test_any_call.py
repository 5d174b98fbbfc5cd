"""Calls that nobody thought of: any sequence of them gives bit for bit what the plain pipeline gives.

With the cache on, the full steps are those of the steps that it really ran.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.denoising.host import PipelineHost
from taylorseer import CacheConfig, full_steps
from tests.support.tiny import FAMILIES

# Of each family its own pipeline, and others over the same components that begin in the middle of a schedule.
CLASSES = [
    *(("dit", "DiTPipeline"), ("hidream", "HiDreamImagePipeline"), ("hunyuan_video", "HunyuanVideoPipeline")),
    *(("flux", "FluxPipeline"), ("flux", "FluxImg2ImgPipeline"), ("flux", "FluxInpaintPipeline")),
    *(("flux", "FluxKontextPipeline"), ("wan", "WanPipeline"), ("wan", "WanVideoToVideoPipeline")),
]
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "own": lambda scheduler: scheduler,
    "euler": lambda _: FlowMatchEulerDiscreteScheduler(shift=2.0),
    "heun": lambda _: FlowMatchHeunDiscreteScheduler(shift=2.0),
    "unipc": lambda _: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0),
    "dpm": lambda _: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0
    ),
}
INTERVAL, WARMUP = 3, 2


@dataclass(frozen=True)
class Call:
    """One call of a pipeline.

    Attributes:
        kind: an index of `CLASSES`.
        steps, seed, size, guidance: arguments of the call; the latter two by index.
        strength: of pipelines that take one.
        edit: what a callback does at each step.
        scheduler: what takes the place of the pipeline's own, a name in `SCHEDULERS`.
        sigmas: whether the schedule is given.
        autocast: whether it runs within bfloat16's.
    """

    kind: int
    steps: int
    seed: int
    size: int
    guidance: int
    strength: float
    edit: str
    scheduler: str
    sigmas: bool
    autocast: bool


def calls(kind: int) -> st.SearchStrategy[Call]:
    own = st.just("own") if CLASSES[kind][0] in ("dit", "hidream") else st.sampled_from([*SCHEDULERS])
    return st.builds(
        Call,
        st.just(kind),
        st.integers(1, 7),
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(0, 2),
        st.sampled_from([0.3, 0.6, 0.75, 1.0]),
        st.sampled_from(["none", "none", "latents", "in place", "replaced", "scaled"]),
        own,
        st.booleans() if CLASSES[kind][1] == "FluxPipeline" else st.just(False),
        st.sampled_from([False, False, True]),
    )


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: family.make(tmp_path_factory.mktemp(name), torch.float32) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def hosts(pipes: dict[str, Any]) -> dict[str, PipelineHost]:
    """Shared by all examples, so that what one leaves behind would be seen by another."""
    return {name: PipelineHost(pipe, text_cache_bytes=2**20) for name, pipe in pipes.items()}


def plain_pipeline(pipe: Any, name: str) -> Any:
    pipeline_class = getattr(diffusers, name)
    wanted = inspect.signature(pipeline_class.__init__).parameters
    parts = {**pipe.config, **pipe.components}
    made = pipeline_class(**{each: parts[each] for each in parts if each in wanted})
    made.set_progress_bar_config(disable=True)
    made.scheduler = copy.deepcopy(pipe.scheduler)
    return made


def arguments_of(call: Call, pipe: Any) -> dict[str, Any]:
    name, pipeline = CLASSES[call.kind]
    family = FAMILIES[name]
    size = family.sizes[call.size % len(family.sizes)]
    guidance = [*family.guidance.values()][call.guidance % len(family.guidance)]
    arguments = {**family.arguments, **size, **guidance.arguments}
    noise = torch.rand(1, 3, size.get("height", 32), size.get("width", 32), generator=torch.Generator().manual_seed(9))
    if "Img2Img" in pipeline or "Inpaint" in pipeline:
        arguments |= {"image": noise, "strength": call.strength}
    if "Inpaint" in pipeline:
        arguments["mask_image"] = (noise[:, :1] > 0.5).float()
    if "Kontext" in pipeline:
        arguments |= {"image": noise, "max_area": size["height"] * size["width"], "_auto_resize": False}
    if "VideoToVideo" in pipeline:
        arguments.pop("num_frames")
        arguments |= {"video": noise[:, None].expand(-1, 5, -1, -1, -1), "strength": call.strength}
    if call.sigmas:
        arguments["sigmas"] = [1 - i / (call.steps + 1) for i in range(call.steps)]
    if call.edit != "none" and hasattr(pipe, "_callback_tensor_inputs"):
        arguments["callback_on_step_end"] = EDITS[call.edit]
        arguments["callback_on_step_end_tensor_inputs"] = list(pipe._callback_tensor_inputs)[:4]
    taken = inspect.signature(type(pipe).__call__).parameters
    return {each: value for each, value in arguments.items() if each in taken}


def _embeddings(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: each for name, each in tensors.items() if "embeds" in name and isinstance(each, torch.Tensor)}


def _edit_latents(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": tensors["latents"] * 0.9}


def _edit_in_place(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    for each in _embeddings(tensors).values():
        each.mul_(1.1)
    return {}


def _replace(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: each.clone() for name, each in _embeddings(tensors).items()}


def _replace_by_others(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: each * (1 + 0.1 * step) for name, each in _embeddings(tensors).items()}


EDITS = {"latents": _edit_latents, "in place": _edit_in_place, "replaced": _replace, "scaled": _replace_by_others}


def outcome(pipe: Any, call: Call) -> torch.Tensor | type[Exception]:
    """What a call ends with: its latents, or the class of what it raises."""
    arguments = arguments_of(call, pipe)
    generator = torch.Generator().manual_seed(call.seed)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=call.autocast):
            output = pipe(
                **arguments,
                num_inference_steps=call.steps,
                generator=generator,
                output_type="latent",
                return_dict=False,
            )
    except Exception as error:
        return type(error)
    return torch.as_tensor(output[0])


def counted(pipe: Any) -> list[int]:
    """Counts the steps of the pipeline's scheduler."""
    steps, step = [], pipe.scheduler.step

    def counting(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return step(*args, **kwargs)

    pipe.scheduler.step = counting
    return steps


@settings(
    derandomize=True,
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, len(CLASSES) - 1).flatmap(lambda kind: st.lists(calls(kind), min_size=1, max_size=2)))
def test_any_sequence_of_calls_is_that_of_the_plain_pipeline(pipes, hosts, sequence):
    name, pipeline = CLASSES[sequence[0].kind]
    host, pipeline_class = hosts[name], getattr(diffusers, pipeline)
    off = host.pipeline_for(CacheConfig(interval=1), pipeline_class=pipeline_class)
    on = host.pipeline_for(CacheConfig(INTERVAL, 1, WARMUP), pipeline_class=pipeline_class)
    replaced = False
    for call in sequence:
        plain = plain_pipeline(pipes[name], pipeline)
        for pipe in (plain, off, on):
            if call.scheduler != "own" or replaced:
                pipe.scheduler = SCHEDULERS[call.scheduler](copy.deepcopy(pipes[name].scheduler))
        replaced = replaced or call.scheduler != "own"
        steps = counted(plain)
        expected = outcome(plain, call)
        got = outcome(off, call)
        if isinstance(expected, type):
            assert got is expected, call
            continue
        assert isinstance(got, torch.Tensor), (call, got)
        assert torch.equal(got, expected), call
        assert isinstance(outcome(on, call), torch.Tensor), call
        session = on.transformer.session
        assert session.num_steps == len(steps), call
        # A strength may leave no step at all: Wan's pipelines decode the picture again then.
        assert session.full_steps == (full_steps(len(steps), INTERVAL, WARMUP) if steps else ()), call
