"""What a forecast step asks of a GPU, without one: torch's meta device stands in, and every operation on it is seen."""

from __future__ import annotations

import inspect
import itertools
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, SCMScheduler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.schedulers import Schedule, counting
from plugin.denoising.transformer import StepObserver
from plugin.families import family_of
from plugin.families.base import BlockInputs, Family
from plugin.request import GenerationRequest, ResponseFormat
from taylorseer import CacheConfig, StepKind
from tests.support.documents import ROOT, tables_of
from tests.support.tiny import FAMILIES
from tests.support.tiny.declared import DECLARED

# For these the host waits until the GPU has done all it was asked for.
WAITS = {"_local_scalar_dense", "nonzero", "equal", "_linalg_check_errors", "masked_select", "_unique2", "bincount"}
# No kernels: views, and memory that nothing is written to.
FREE = {
    "view",
    "_unsafe_view",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "t",
    "transpose",
    "permute",
    "expand",
    "alias",
}
FREE |= {"detach", "as_strided", "unbind", "split", "split_with_sizes", "empty", "empty_like", "empty_strided"}
# What waits in diffusers' own schedulers (UniPC solves a small system at each step and looks whether it could; those of
# CogVideoX, CogView3 and Hunyuan-DiT read a table) and in Lumina-Next's pipeline.
OF_SCHEDULERS = {
    **dict.fromkeys(("hidream", "skyreels_v2", "wan"), ("_linalg_check_errors",)),
    **dict.fromkeys(("cogvideox", "cogview3", "hunyuan_dit", "lumina_next"), ("_local_scalar_dense", "nonzero")),
}
# Their pipelines or forwards read on the host how many tokens count, or autocast, of which the meta device has none.
READING = {"auraflow", "ernie_image", "hunyuan_image_21", "hunyuan_video15", "kandinsky5", "mochi", "nucleusmoe_image"}
READING |= {"qwen_image", "z_image"}


class PretendedGpu(TorchDispatchMode, StepObserver):
    """Notes what is launched on the meta device, and what waits for it, of each step of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.step = -1
        self.kinds: dict[int, StepKind] = {}
        self.kernels: dict[int, list[str]] = defaultdict(list)
        self.waits: dict[int, list[tuple[str, str]]] = defaultdict(list)

    def step_started(self, step: int, num_steps: int, latents: torch.Tensor) -> None:
        self.step = step

    def step_computed(self, step: int, kind: StepKind) -> None:
        self.kinds[step] = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        device = kwargs.get("device")
        reads = any(tensor.is_meta for tensor in tensors)
        to_meta = device is not None and torch.device(device).type == "meta"
        if not reads and not to_meta:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        to_host = (name == "_to_copy" and reads and device is not None and not to_meta) or (
            name == "copy_" and not args[0].is_meta
        )
        if to_host or name in WAITS:
            ours = [frame.strip() for frame in traceback.format_stack() if "site-packages" not in frame]
            self.waits[self.step].append(("copy to the host" if to_host else name, ours[-2]))
        if name not in FREE:
            self.kernels[self.step].append(name)
        # What the host is given: zeros, and several numbers as they are in schedules, falling: sigmas from 1.
        if name == "_local_scalar_dense":
            return 0
        if name == "nonzero":
            return torch.zeros(1, args[0].ndim, dtype=torch.int64, device="meta")
        if to_host:
            dtype, numel = kwargs.get("dtype") or args[0].dtype, args[0].numel()
            numbers = torch.arange(numel, 0, -1) / (numel if dtype.is_floating_point else 1)
            return numbers.to(dtype).view(args[0].shape)
        return func(*args, **kwargs)


class NoBlocks:
    """Features of the right shape: what the blocks themselves do is not asked here."""

    name = "none"

    def __init__(self, family: Family) -> None:
        pass

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.empty_like(inputs["hidden_states"]) if out is None else out


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """As on a GPU, a forecast is one kernel."""
    monkeypatch.setattr("taylorseer.weighted_sum._kernel", lambda *_: lambda slots, weights, out: out.zero_())


def observed(host: PipelineHost, name: str, cache: CacheConfig) -> PretendedGpu:
    family, gpu = TINY[name], PretendedGpu()
    pipe = host.pipeline_for(cache, gpu)
    arguments = {**family.arguments, **family.sizes[0], "output_type": "latent", "return_dict": False}
    with gpu:
        pipe(**arguments, num_inference_steps=12, generator=torch.Generator().manual_seed(0))
    return gpu


TINY = {**FAMILIES, **DECLARED}


@pytest.fixture(params=sorted(TINY.keys() - READING))
def name(request: pytest.FixtureRequest) -> str:
    """Of a family."""
    return request.param


@pytest.fixture
def host(name, tmp_path) -> PipelineHost:
    """On the meta device."""
    pipe = TINY[name].make(tmp_path, torch.bfloat16)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.to("meta")
    return PipelineHost(pipe, NoBlocks)


CACHE = CacheConfig(interval=4, order=2, warmup_steps=2)


def forecasts(gpu: PretendedGpu) -> list[int]:
    """The forecast steps; not the last, which what comes after the steps is counted with."""
    return [step for step, kind in gpu.kinds.items() if kind is StepKind.FORECAST and step < max(gpu.kinds)]


def test_a_forecast_step_does_not_wait_for_the_gpu(host, name):
    gpu = observed(host, name, CACHE)
    assert len(forecasts(gpu)) >= 6
    for step in forecasts(gpu):
        waits = [wait for wait in gpu.waits[step] if wait[0] not in OF_SCHEDULERS.get(name, ())]
        assert not waits, f"step {step}"


def test_what_no_step_changes_is_not_launched_again(host, name):
    """The second request of as many steps embeds no timestep; both counts are those of the table in the docs."""
    first, second = (observed(host, name, CACHE) for _ in range(2))
    counts = [{len(gpu.kernels[step]) for step in forecasts(gpu)[1:]} for gpu in (first, second)]
    rows = {row[0]: row for row in tables_of(ROOT / "docs/benchmarking.md")["Where a forecast step's time goes"]}
    assert counts == [{int(cell)} for cell in rows[f"`{name}`"][1:]]
    for step in forecasts(second):
        assert name == "prx" or "sin" not in second.kernels[step], "PRX's forward computes the waves itself"


@pytest.mark.parametrize("name", TINY)
def test_two_requests_of_one_schedule_embed_what_the_scheduler_has(name, tmp_path, monkeypatch):
    """On a GPU an embedding is kept by the scheduler's timestep, unread: here, where it can be read, the one must tell
    the other."""
    seen: dict[tuple[Any, ...], set[tuple[float, ...]]] = defaultdict(set)
    embedded_once = Family.embedded_once

    def recorded(
        self: Family,
        timestep: torch.Tensor,
        scheduled: float | None,
        compute: Callable[[], torch.Tensor],
        *more: object,
    ) -> torch.Tensor:
        assert scheduled is not None
        seen[timestep.dtype, len(timestep), scheduled].add(tuple(timestep.tolist()))
        return embedded_once(self, timestep, scheduled, compute, *more)

    monkeypatch.setattr(Family, "embedded_once", recorded)
    family = TINY[name]
    host = PipelineHost(family.make(tmp_path, torch.float32))
    for (guidance, size), steps in itertools.product(itertools.product(family.guidance, family.sizes[:2]), (3, 7)):
        arguments = {**family.arguments, **size, **family.guidance[guidance].arguments}
        host.pipeline_for(CACHE)(**arguments, num_inference_steps=steps, output_type="latent")
    assert len(seen) >= 7
    assert all(len(values) == 1 for values in seen.values())


def test_a_timestep_that_the_host_does_not_know_is_embedded_anew(flux):
    family, timestep = family_of(flux.transformer), torch.empty(1, device="meta")
    embeddings = [
        family.embedded_once(timestep, scheduled, lambda: torch.empty(1)) for scheduled in (None, None, 5.0, 5.0)
    ]
    assert embeddings[0] is not embeddings[1]
    assert embeddings[2] is embeddings[3]


# Counting


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, DDPMScheduler])
def test_old_schedulers_count_their_steps(scheduler_class):
    scheduler = scheduler_class()
    plain = inspect.signature(scheduler.step)
    assert not hasattr(scheduler, "step_index")
    counted = counting(scheduler)
    assert isinstance(counted, scheduler_class)
    assert type(counted).__name__ == scheduler_class.__name__
    assert inspect.signature(counted.step) == plain
    for steps in (3, 5):
        counted.set_timesteps(steps)
        assert counted.step_index is None
        indices = []
        for timestep in counted.timesteps:
            indices.append(counted.step_index or 0)
            counted.step(torch.zeros(1, 4), timestep, torch.zeros(1, 4))
        assert indices == list(range(len(counted.timesteps)))
    assert not hasattr(scheduler_class(), "step_index"), "the class itself is as it was"


def test_a_scheduler_without_noise_levels_has_none():
    """SCM, of Sana Sprint, keeps timesteps alone."""
    scheduler = SCMScheduler()
    scheduler.set_timesteps(2)
    assert Schedule(counting(scheduler), None).noise_levels() == []


def test_schedulers_that_count_are_left_as_they_are():
    scheduler = FlowMatchEulerDiscreteScheduler()
    assert type(counting(scheduler)) is FlowMatchEulerDiscreteScheduler


# Whole requests


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("coordinate", ["step", "sigma"])
@pytest.mark.parametrize("max_error", [None, 0.05])
def test_a_request_with_previews_and_audits_runs_on_a_device_of_its_own(host, name, coordinate, max_error):
    """What is on the host and what on the device does not meet but where it is copied."""
    family = TINY[name]
    size = family.sizes[0]
    request = GenerationRequest(
        prompt=family.arguments.get("prompt"),
        negative_prompt=None,
        class_label=family.arguments["class_labels"][0] if "class_labels" in family.arguments else None,
        seed=0,
        num_inference_steps=12,
        guidance_scale=4.0,
        height=size.get("height", 64),
        width=size.get("width", 64),
        num_frames=size.get("num_frames", 1),
        fps=16,
        cache=replace(CACHE, coordinate=coordinate, max_error=max_error),
        deadline_ms=None,
        response_format=ResponseFormat.RAW,
        preview=True,
    )
    with PretendedGpu() as gpu:
        generation = generate(host, request, max_sequence_length=family.arguments.get("max_sequence_length"))
    assert generation.report.num_steps == 12
    assert generation.report.audits
    copies = [wait for waits in gpu.waits.values() for wait in waits if wait[0] == "copy to the host"]
    assert len(copies) <= 6, "timesteps, noise levels for each of their two uses, two previews, the picture"
