"""What a model does with the pictures of a request: its tasks, each one pipeline class of diffusers.

Written down, because diffusers takes seconds to import and a plan must not wait for it. The tests of this module
compare each line with diffusers' own signatures, and the relatives of a class with its tables
(`AutoPipelineForImage2Image`, `AutoPipelineForInpainting` and those of videos, diffusers 0.42.0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


class Several(Enum):
    """How a task takes more pictures than its pipeline has arguments for."""

    STITCHED = "stitched"  # side by side, as one picture
    FRAMES = "frames"  # one video
    LIST = "list"  # as they are, to a pipeline that takes several


@dataclass(frozen=True)
class Task:
    """What one pipeline class makes of a request.

    Attributes:
        pipeline: the class's name in diffusers.
        pictures: the arguments of its call that take pictures, one for each file of `input_image`, in order.
        several: how the last of them takes more than one file; None where it takes one.
        mask: whether it needs a mask, its argument `mask_image`.
        strength: the default of its argument of that name; None where it has none and runs all steps.
        whole_steps: whether it rounds the steps that `strength` leaves down before it counts them, as Wan's does.
        negative_prompt: whether it has an argument of that name.
        appended: whether its pictures become tokens of their own, which the transformer sees beside the result's.
        least_side: the fewest pixels of a side that its pictures may have.
        most_ratio: how many times as long one side of them may be as the other.
        guided: whether the pipeline computes a second branch where the guidance scale asks for one; in others the scale
            is an input of the transformer, or ignored.
    """

    pipeline: str
    pictures: tuple[str, ...] = ()
    several: Several | None = None
    mask: bool = False
    strength: float | None = None
    whole_steps: bool = False
    negative_prompt: bool = True
    appended: bool = False
    least_side: int = 1
    most_ratio: float = float("inf")
    guided: bool = True

    def takes(self, pictures: int, mask: bool) -> bool:
        """Whether it can be done with that many pictures, and with a mask or without one."""
        most = float("inf") if self.several else len(self.pictures)
        return len(self.pictures) <= pictures <= most and mask == self.mask

    def steps(self, num_inference_steps: int, strength: float | None) -> int:
        """How many of the schedule's steps run (`get_timesteps` of diffusers' pipelines); 0 where strength leaves none.

        Args:
            num_inference_steps: of the schedule.
            strength: 0 to 1, or None for the default.
        """
        if self.strength is None:
            return num_inference_steps
        kept = num_inference_steps * (self.strength if strength is None else strength)
        if self.whole_steps:
            kept = int(kept)
        return num_inference_steps - int(num_inference_steps - min(kept, num_inference_steps))

    def __str__(self) -> str:
        """For people: "FluxInpaintPipeline: input_image (1), mask_image, strength (0.6)"."""
        count = f"{len(self.pictures)} or more" if self.several else f"{len(self.pictures)}"
        pictures = [f"input_image ({count})"] if self.pictures else ["no picture"]
        mask = ["mask_image"] if self.mask else []
        strength = [] if self.strength is None else [f"strength ({self.strength})"]
        return f"{self.pipeline}: {', '.join(pictures + mask + strength)}"

    def most_files(self, max_files: int) -> int:
        """The most files of `input_image` that it takes, where the model allows `max_files`."""
        return max_files if self.several else len(self.pictures)

    def describe(self, max_files: int) -> dict[str, Any]:
        """For clients: how many pictures it takes, whether with a mask, and its default strength."""
        return {
            "pipeline": self.pipeline,
            "input_image": {"min": len(self.pictures), "max": self.most_files(max_files)},
            "mask_image": self.mask,
            "strength": self.strength,
        }


@dataclass(frozen=True)
class Traits:
    """What of a loaded pipeline decides which tasks of its class it can do.

    Attributes:
        experts: it has two transformers.
        expand_timesteps: it has a timestep for each token, as Wan2.2 TI2V-5B.
        sees_pictures: its transformer attends to an encoded picture, as Wan2.1's of image to video.
        sees_two: to two of them, as Wan2.1's of first and last frame.
        distilled: it takes no guidance, as FLUX.2 klein of four steps.
    """

    experts: bool = False
    expand_timesteps: bool = False
    sees_pictures: bool = False
    sees_two: bool = False
    distilled: bool = False


@dataclass(frozen=True)
class _Row:
    task: Task
    applies: Callable[[Traits], bool] = field(default=lambda _: True)


def tasks_of(pipeline_class: str, traits: Traits | None = None) -> tuple[Task, ...]:
    """The tasks of a pipeline: those of its class and of the classes that run on the same components.

    Args:
        pipeline_class: the name of the class that is loaded.
        traits: of the pipeline; None for one that has none of them.
    """
    traits = traits or Traits()
    rows = _TASKS.get(pipeline_class, (_Row(Task(pipeline_class)),))
    tasks = (row.task for row in rows if row.applies(traits))
    return tuple(replace(task, guided=False) if traits.distilled else task for task in tasks)


_IMAGE = ("image",)


def _of(model: str, strength: float, mask_strength: float) -> tuple[_Row, ...]:
    """Text to image, image to image and inpainting of a model whose classes are named alike."""
    return (
        _Row(Task(f"{model}Pipeline")),
        _Row(Task(f"{model}Img2ImgPipeline", _IMAGE, strength=strength)),
        _Row(Task(f"{model}InpaintPipeline", _IMAGE, mask=True, strength=mask_strength)),
    )


def _flux2(pipeline: str, *, guided: bool) -> tuple[_Row, ...]:
    """Text to image, with or without a list of pictures that become tokens (`Flux2ImageProcessor.check_image_input`
    says which); no negative prompt."""
    text = Task(pipeline, negative_prompt=False, guided=guided)
    edit = replace(text, pictures=_IMAGE, several=Several.LIST, appended=True, least_side=64, most_ratio=8)
    return _Row(text), _Row(edit)


_FLUX = _of("Flux", 0.6, 0.6)
_QWEN = _of("QwenImage", 0.6, 0.6)
_CONTROL, _BOTH = ("control_image",), ("image", "control_image")
_VIDEO_TO_VIDEO = Task("WanVideoToVideoPipeline", ("video",), Several.FRAMES, strength=0.8, whole_steps=True)
_WAN_IMAGE = Task("WanImageToVideoPipeline", _IMAGE)

_TASKS: dict[str, tuple[_Row, ...]] = {
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "FluxFillPipeline": (_Row(Task("FluxFillPipeline", _IMAGE, mask=True, strength=1.0, negative_prompt=False)),),
    "FluxKontextPipeline": (
        _Row(Task("FluxKontextPipeline")),
        _Row(Task("FluxKontextPipeline", _IMAGE, Several.STITCHED, appended=True)),
    ),
    "FluxControlPipeline": (
        _Row(Task("FluxControlPipeline", _CONTROL, negative_prompt=False)),
        _Row(Task("FluxControlImg2ImgPipeline", _BOTH, strength=0.6, negative_prompt=False)),
        _Row(Task("FluxControlInpaintPipeline", _BOTH, mask=True, strength=0.6, negative_prompt=False)),
    ),
    "Flux2Pipeline": _flux2("Flux2Pipeline", guided=False),
    "Flux2KleinPipeline": _flux2("Flux2KleinPipeline", guided=True),
    "QwenImagePipeline": _QWEN,
    "QwenImageImg2ImgPipeline": _QWEN,
    "QwenImageInpaintPipeline": _QWEN,
    "QwenImageEditPipeline": (_Row(Task("QwenImageEditPipeline", _IMAGE, appended=True)),),
    "QwenImageEditPlusPipeline": (_Row(Task("QwenImageEditPlusPipeline", _IMAGE, Several.LIST, appended=True)),),
    "ZImagePipeline": _of("ZImage", 0.6, 1.0),
    "StableDiffusion3Pipeline": _of("StableDiffusion3", 0.6, 0.6),
    # ChromaInpaintPipeline of diffusers 0.42.0 reads `guidance_embeds`, which Chroma's transformer does not have.
    "ChromaPipeline": _of("Chroma", 0.9, 0.6)[:2],
    "SanaSprintPipeline": (_Row(Task("SanaSprintPipeline", negative_prompt=False, guided=False)),),
    "DiTPipeline": (_Row(Task("DiTPipeline", negative_prompt=False)),),
    "HunyuanVideoImageToVideoPipeline": (_Row(Task("HunyuanVideoImageToVideoPipeline", _IMAGE)),),
    "HunyuanSkyreelsImageToVideoPipeline": (_Row(Task("HunyuanSkyreelsImageToVideoPipeline", _IMAGE)),),
    "WanPipeline": (
        _Row(Task("WanPipeline")),
        _Row(_VIDEO_TO_VIDEO, lambda of: not of.experts and not of.expand_timesteps),
        _Row(_WAN_IMAGE, lambda of: of.expand_timesteps),
    ),
    "WanVideoToVideoPipeline": (_Row(Task("WanPipeline")), _Row(_VIDEO_TO_VIDEO)),
    "WanImageToVideoPipeline": (
        _Row(_WAN_IMAGE, lambda of: not of.sees_two),
        _Row(
            Task("WanImageToVideoPipeline", ("image", "last_image")),
            lambda of: of.sees_two or not (of.sees_pictures or of.expand_timesteps),
        ),
    ),
}
