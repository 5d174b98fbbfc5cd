"""The fields of a request that have to do with pictures: which task they ask for, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plugin.errors import InvalidRequest
from plugin.limits import Limits
from plugin.pictures import Picture
from plugin.sizing import side_like, size_like
from plugin.tasks import Several, Task


@dataclass(frozen=True)
class PictureFields:
    """What a request says that has to do with pictures, each value valid by itself.

    Attributes:
        given: by name, of height, width, num_frames, strength and negative_prompt those that the client gave.
        num_inference_steps: of the request.
        strength: the model's own default; None for the task's.
        pictures: the heads of the files of input_image.
        mask: the same of mask_image, or None.
    """

    given: Mapping[str, Any]
    num_inference_steps: int
    strength: float | None
    pictures: tuple[Picture, ...]
    mask: Picture | None

    def resolve(self, tasks: Sequence[Task], limits: Limits) -> dict[str, Any]:
        """The fields of the `GenerationRequest` that follow.

        Args:
            tasks: of the model; at least one.
            limits: of the model.

        Raises:
            InvalidRequest: the model has no task for these pictures, or they do not go together.
        """
        task = self._task(tasks, limits)
        if "negative_prompt" in self.given and not task.negative_prompt:
            raise InvalidRequest(f"negative_prompt is given, must be left out: {task.pipeline} takes none")
        fields = {"task": task, "pictures": self.pictures, "mask": self.mask, "strength": self._strength(task)}
        if not self.pictures:
            return fields
        self._check_frames(task)
        if task.several is Several.FRAMES:
            fields["num_frames"] = self._num_frames(limits)
        height, width = self._size(limits)
        return fields | {"height": height, "width": width}

    def _task(self, tasks: Sequence[Task], limits: Limits) -> Task:
        count, masked = len(self.pictures), self.mask is not None
        found = next((task for task in tasks if task.takes(count, masked)), None)
        if found is None:
            raise InvalidRequest(_why_no_task(tasks, count, masked, limits))
        return found

    def _strength(self, task: Task) -> float | None:
        given: float | None = self.given.get("strength")
        if task.strength is None:
            if given is not None:
                reason = f"{task.pipeline} runs all steps" if self.pictures else "there is no input_image"
                raise InvalidRequest(f"strength is {given:g}, must be left out: {reason}")
            return None
        default = task.strength if self.strength is None else self.strength
        strength, steps = default if given is None else given, self.num_inference_steps
        if task.steps(steps, strength) < 1:
            raise InvalidRequest(f"strength is {strength:g}, must leave at least 1 of {steps} num_inference_steps")
        return strength

    def _check_frames(self, task: Task) -> None:
        first, is_video = self.pictures[0], task.several is Several.FRAMES
        for each in self.pictures:
            size = f"{each.name} is {each.width} x {each.height}"
            if min(each.width, each.height) < task.least_side:
                raise InvalidRequest(f"{size}, must have at least {task.least_side} pixels on each side")
            if max(each.width, each.height) > task.most_ratio * min(each.width, each.height):
                raise InvalidRequest(f"{size}, must be at most {task.most_ratio:g} times as long on one side")
        for each in (*self.pictures, *([self.mask] if self.mask else [])):
            if each.frames > 1 and (not is_video or len(self.pictures) > 1):
                raise InvalidRequest(f"{each.name} is an animation of {each.frames} frames, must be a still picture")
        if self.mask and (self.mask.width, self.mask.height) != (first.width, first.height):
            raise InvalidRequest(
                f"mask_image is {self.mask.width} x {self.mask.height}, must be {first.width} x {first.height} as "
                "input_image is"
            )

    def _num_frames(self, limits: Limits) -> int:
        frames = self.pictures[0].frames if len(self.pictures) == 1 else len(self.pictures)
        asked: int | None = self.given.get("num_frames")
        if asked is not None and asked > frames:
            raise InvalidRequest(f"num_frames is {asked}, must be at most {frames}, the frames of input_image")
        most = min(frames, limits.max_frames)
        return asked or (most - 1) // limits.frames_multiple * limits.frames_multiple + 1

    def _size(self, limits: Limits) -> tuple[int, int]:
        """(height, width): as asked for, or as the first picture has it; of one that is given the other follows."""
        first = self.pictures[0]
        height: int | None = self.given.get("height")
        width: int | None = self.given.get("width")
        if height is not None:
            return height, width or side_like(height * first.width / first.height, limits)
        if width is not None:
            return side_like(width * first.height / first.width, limits), width
        return size_like(first.width, first.height, limits)


def _why_no_task(tasks: Sequence[Task], count: int, masked: bool, limits: Limits) -> str:
    if masked and not any(task.mask for task in tasks):
        return "mask_image is given, must be left out: this model takes no mask"
    if count and not any(task.pictures for task in tasks):
        return "input_image is given, must be left out: this model takes no picture"
    able = [task for task in tasks if task.mask == masked]
    if not able and count:
        return "mask_image is missing, must be a PNG, JPEG or WebP file: this model repaints what it marks"
    wanted = sorted({_count(task, limits) for task in able or tasks})
    if not count:
        beside = "a mask_image is given" if masked else "this model begins with a picture"
        return f"input_image is missing, must have {' or '.join(wanted)} files: {beside}"
    return f"input_image has {count} files, must have {' or '.join(wanted)} of them"


def _count(task: Task, limits: Limits) -> str:
    low = len(task.pictures)
    if task.several:
        return f"from {low} to {task.most_files(limits.max_files)}"
    return str(low)
