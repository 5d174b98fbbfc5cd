"""The arguments of a pipeline's call: those of its family, and the request's pictures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers.guiders.guider_utils import BaseGuidance

from plugin.denoising.host import PipelineHost
from plugin.families.base import Family
from plugin.pictures import stitched
from plugin.request import GenerationRequest
from plugin.tasks import Several, Task
from taylorseer import CacheConfig

# Pipelines that have these would make another size and resize the result, need a package that cleans captions, or take
# two steps alone (Sana-Sprint).
_AS_ASKED = {"use_resolution_binning": False, "clean_caption": False, "intermediate_timesteps": None}


def pipeline_class_of(task: Task | None, loaded: DiffusionPipeline) -> type[DiffusionPipeline] | None:
    """The class that does a task; None for the one that is loaded."""
    if task is None or task.pipeline == type(loaded).__name__:
        return None
    return getattr(diffusers, task.pipeline)


def prepare_tasks(host: PipelineHost, tasks: Sequence[Task]) -> None:
    """Makes the pipelines of a model's tasks once, so that what they lack is seen when the model is loaded."""
    for task in tasks:
        host.pipeline_for(CacheConfig(), pipeline_class=pipeline_class_of(task, host.pipe))


def call_arguments(family: Family, request: GenerationRequest, max_sequence_length: int | None) -> dict[str, Any]:
    """The arguments of the call for a request, but for those that are the same in every pipeline.

    Its pictures are decoded here: RGB and upright, of the size they have. The pipeline resizes them itself.

    Raises:
        InvalidRequest: a picture is damaged.
    """
    arguments, task = family.call_arguments(request, max_sequence_length), request.task
    if task is None:
        return arguments
    if task.strength is not None:
        arguments["strength"] = request.strength
    if request.mask is not None:
        arguments["mask_image"] = request.mask.decode_mask()
    return arguments | _pictures(request)


def accepted(pipe: DiffusionPipeline, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the pipeline's call has, and what makes it do as it is asked. What is None is left to
    the pipeline's own default.

    The scale of guidance belongs to a guider where the pipeline has one, which is this request's own.
    """
    taken = _parameters(type(pipe))  # type: ignore[arg-type]
    guiders = [each for each in pipe.components.values() if isinstance(each, BaseGuidance)]
    for guider in guiders:
        guider.guidance_scale = arguments["guidance_scale"]
    frames = {"frames": arguments["num_frames"]} if "num_frames" in arguments else {}
    given = {**_AS_ASKED, **frames, **arguments}
    return {name: value for name, value in given.items() if name in taken and (value is not None or name in _AS_ASKED)}


@cache
def _parameters(pipeline_class: Any) -> frozenset[str]:
    return frozenset(inspect.signature(pipeline_class.__call__).parameters)


def _pictures(request: GenerationRequest) -> dict[str, Any]:
    """The decoded pictures by the call's arguments."""
    task, pictures = request.task, request.pictures
    if task is None or not task.pictures:
        return {}
    if task.several is Several.FRAMES:
        decoded = [frame for each in pictures for frame in each.decode_frames(request.num_frames)]
        return {task.pictures[-1]: decoded[: request.num_frames]}
    stills = [each.decode() for each in pictures]
    if task.several is Several.LIST:
        return {task.pictures[-1]: stills}
    if task.several is Several.STITCHED and len(stills) > 1:
        stills = [stitched(stills)]
    return dict(zip(task.pictures, stills, strict=True))
