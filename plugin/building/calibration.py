"""Records inputs of the block stacks in runs of the model itself, from which an fp8 engine gets its ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from diffusers import DiffusionPipeline

from plugin.building.from_text import task_from_text
from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.denoising.picture_arguments import accepted, call_arguments
from plugin.denoising.transformer import StepObserver
from plugin.engines import make_engine
from plugin.engines.base import EngineError
from plugin.engines.progress import BuildProgress, NoProgress
from plugin.engines.tensorrt.fp8 import Calibration, Samples
from plugin.families.base import BlockInputs, Family
from plugin.request import GenerationRequest
from plugin.serving.plan import example_request

PROMPTS = (  # unlike each other: people and places, text, flat colours, fine detail, movement
    "A portrait of an old fisherman in a yellow raincoat, studio light, shallow depth of field",
    "A shop window at night with a neon sign that says OPEN, rain on the street",
    "A flat illustration of a red balloon over green hills, simple shapes",
    "Waves breaking on a rocky shore while a flock of gulls rises, seen from above",
)
LABELS = 4  # of models of a class label, evenly spread
STEPS = 4

Size = tuple[int, int, int]  # height and width in pixels, frames


def calibration_of(
    config: ModelConfig, sizes: Sequence[Size], prompts: Sequence[str] = (), steps: int | None = None
) -> Calibration:
    """The runs to calibrate a model with: each subject at each size, with the model's own steps and guidance.

    Args:
        config: the model's settings.
        sizes: of the pictures or videos.
        prompts: none for `PROMPTS`, or for `LABELS` class labels if the model takes those.
        steps: how many steps of each run are recorded; None for `STEPS`.

    Raises:
        InvalidRequest: a prompt or a size that the model does not serve.
        ValueError: no step, or prompts for a model of class labels.
    """
    limits = config.limits
    if prompts and not limits.takes_prompt:
        raise ValueError("calibration-prompts is given, must be left out: this model takes a class_label")
    subjects: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts or PROMPTS]
    if not limits.takes_prompt:
        labels = min(LABELS, limits.num_classes)
        subjects = [{"class_label": i * limits.num_classes // labels} for i in range(labels)]
    requests = tuple(
        example_request(
            config, **subject, seed=seed, height=height, width=width, num_frames=num_frames, cache_interval=1
        )
        for seed, (subject, (height, width, num_frames)) in enumerate(product(subjects, sizes))
    )
    return Calibration(requests, STEPS if steps is None else steps)


def record(
    pipe: DiffusionPipeline,
    calibration: Calibration,
    max_sequence_length: int | None = None,
    progress: BuildProgress | None = None,
) -> Mapping[str, Samples]:
    """Inputs of the block stack of each transformer, on the CPU, from real runs.

    Args:
        pipe: the whole pipeline.
        calibration: the runs.
        max_sequence_length: text tokens, or None for the pipeline's default.
        progress: follows the runs.

    Returns:
        Samples by the transformer's name: of each recorded step all its calls, those of both guidance branches.

    Raises:
        EngineError: an input is not finite in the pipeline's dtype, a transformer had no part in the recorded steps, or
            `progress` ended the build.
        ValueError: the pipeline makes nothing from text alone.
    """
    progress = progress or NoProgress()
    from_text = task_from_text(pipe)
    host = PipelineHost(pipe, _Recorder)
    recorders: dict[str, _Recorder] = host.engines  # type: ignore[assignment]
    requests = [replace(each, task=from_text) for each in calibration.requests]
    for number, request in enumerate(requests, 1):
        progress.stage(f"calibrating, run {number} of {len(calibration.requests)}: {_title(request)}")
        progress.phase_started("denoising", None, request.num_inference_steps)
        steps = _RecordedSteps(tuple(recorders.values()), calibration.steps, progress)
        own = host.pipeline_for(request.cache, steps)
        own(
            **accepted(own, call_arguments(host.family, request, max_sequence_length)),
            num_inference_steps=request.num_inference_steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="latent",
        )
        progress.phase_ended("denoising")
    for name, recorder in recorders.items():
        if not recorder.samples:
            raise EngineError(f"{name} had no part in the {calibration.steps} steps recorded: raise calibration-steps")
    return {name: recorder.samples for name, recorder in recorders.items()}


class _Recorder:
    """The torch engine; while `recording` it keeps the inputs of each call.

    Attributes:
        samples: what it has kept.
        recording: whether it keeps those of the next calls.
    """

    name = "torch"

    def __init__(self, family: Family) -> None:
        self.samples: list[BlockInputs] = []
        self.recording = False
        self._engine = make_engine("torch", family)

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """See `Engine.run`.

        Raises:
            EngineError: an input that is to be kept is not finite.
        """
        if self.recording:
            self.samples.append({name: tensor.detach().cpu().clone() for name, tensor in inputs.items()})
            for name, tensor in self.samples[-1].items():
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    raise EngineError(f"block input {name} is not finite in {dtype}: this model cannot be built in fp8")
        return self._engine.run(inputs, out)


class _RecordedSteps(StepObserver):
    """Turns recording on for the steps of one run that are wanted."""

    def __init__(self, recorders: Sequence[_Recorder], steps: int, progress: BuildProgress) -> None:
        self._recorders = recorders
        self._steps = steps
        self._progress = progress

    def step_started(self, step: int, num_steps: int, latents: torch.Tensor) -> None:
        if not self._progress.step_done("denoising", step - 1):
            raise EngineError("the build was ended while it calibrated")
        for recorder in self._recorders:
            recorder.recording = step in spread(self._steps, num_steps)


def spread(count: int, num_steps: int) -> frozenset[int]:
    """At most `count` of the steps 0 to num_steps - 1, the first and the last among them, evenly spread."""
    return frozenset(round(i * (num_steps - 1) / max(1, count - 1)) for i in range(count))


def _title(request: GenerationRequest) -> str:
    subject = f"class {request.class_label}" if request.prompt is None else request.prompt[:40]
    frames = f"x{request.num_frames}" if request.num_frames > 1 else ""
    return f"{subject}, {request.height}x{request.width}{frames}"
