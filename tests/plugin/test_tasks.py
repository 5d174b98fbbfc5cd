"""The table of tasks, held to diffusers' own signatures and tables."""

from __future__ import annotations

import inspect
import re

import diffusers
import pytest
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    AUTO_TEXT2VIDEO_PIPELINES_MAPPING,
    AUTO_VIDEO2VIDEO_PIPELINES_MAPPING,
    _get_task_class,
)

from plugin.tasks import _TASKS, Several, Task, Traits, tasks_of
from tests.support.documents import ROOT, tables_of

ALL = {row.task for rows in _TASKS.values() for row in rows}
_PICTURES = ("image", "control_image", "last_image", "video")


@pytest.mark.parametrize("task", sorted(ALL, key=lambda task: (task.pipeline, task.pictures)), ids=str)
def test_a_task_says_what_the_call_of_its_pipeline_takes(task):
    parameters = inspect.signature(getattr(diffusers, task.pipeline).__call__).parameters
    assert set(task.pictures) <= set(parameters)
    assert ("strength" in parameters) == (task.strength is not None)
    if task.strength is not None:
        assert parameters["strength"].default == task.strength
    assert ("negative_prompt" in parameters) == task.negative_prompt
    assert ("mask_image" in parameters) == task.mask
    required = {
        name for name in _PICTURES if name in parameters and parameters[name].default is inspect.Parameter.empty
    }
    assert required <= set(task.pictures)


@pytest.mark.parametrize("pipeline", ["FluxPipeline", "FluxKontextPipeline", "WanPipeline", "FluxControlPipeline"])
def test_the_relatives_of_a_class_are_those_of_diffusers_tables(pipeline):
    """FluxControlPipeline is in diffusers' table of text to image too, but cannot be called without its picture."""
    text, *_ = (table for table in (AUTO_TEXT2IMAGE_PIPELINES_MAPPING, AUTO_TEXT2VIDEO_PIPELINES_MAPPING))
    tables = (AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, AUTO_INPAINT_PIPELINES_MAPPING, AUTO_VIDEO2VIDEO_PIPELINES_MAPPING)
    found = (_get_task_class(table, pipeline, throw_error_if_not_exist=False) for table in (text, *tables))
    expected = {each.__name__ for each in found if each is not None} | {pipeline}
    assert {task.pipeline for task in tasks_of(pipeline)} == expected


def test_a_class_without_a_row_makes_results_from_text_alone():
    assert tasks_of("HiDreamImagePipeline") == (Task("HiDreamImagePipeline"),)


def test_what_wan_can_do_follows_from_what_is_loaded():
    def names(pipeline: str, **traits: bool) -> list[tuple[str, int]]:
        return [(task.pipeline, len(task.pictures)) for task in tasks_of(pipeline, Traits(**traits))]

    text, image = ("WanPipeline", 0), "WanImageToVideoPipeline"
    assert names("WanPipeline") == [text, ("WanVideoToVideoPipeline", 1)]
    assert names("WanPipeline", experts=True) == [text]
    assert names("WanPipeline", expand_timesteps=True) == [text, (image, 1)]
    assert names(image, sees_pictures=True) == [(image, 1)]
    assert names(image, sees_pictures=True, sees_two=True) == [(image, 2)]
    assert names(image, experts=True) == [(image, 1), (image, 2)]
    assert names(image, expand_timesteps=True) == [(image, 1)]


def test_a_strength_leaves_the_last_steps():
    image, video = Task("A", ("image",), strength=0.6), Task("B", ("video",), strength=0.8, whole_steps=True)
    assert [image.steps(50, strength) for strength in (None, 1.0, 0.6, 0.5, 0.3, 0.01, 0.0)] == [
        30,
        50,
        30,
        25,
        15,
        1,
        0,
    ]
    assert (image.steps(10, 0.55), video.steps(10, 0.55)) == (6, 5)
    assert (image.steps(10, 0.05), video.steps(10, 0.05)) == (1, 0)
    assert Task("C", ("image",)).steps(50, 0.3) == 50


def test_a_description_says_how_many_pictures_a_task_takes():
    task = Task("A", ("image",), Several.STITCHED, strength=0.6)
    assert task.describe(16) == {
        "pipeline": "A",
        "input_image": {"min": 1, "max": 16},
        "mask_image": False,
        "strength": 0.6,
    }


def test_the_reference_says_what_each_class_takes():
    """Every class of which requests may have pictures is in the table, and no other."""
    table = tables_of(ROOT / "docs/reference.md")["Pictures"][1:]
    rows = {name: row for row in table for name in re.findall(r"\w+Pipeline", row[0])}
    related = {
        name: {each.task.pipeline for each in tasks}
        for name, tasks in _TASKS.items()
        if any(each.task.pictures for each in tasks)
    }
    written = {name for name in related if not any(name in related[other] for other in related.keys() - {name})}
    assert rows.keys() >= written
    assert rows.keys() <= related.keys()
    for name, row in rows.items():
        shown = {name if each == "itself" else each for each in re.findall(r"\w+Pipeline|itself", row[3])}
        assert shown == related[name], name
        masks = any(each.task.mask for each in _TASKS[name])
        assert (row[2] != "no") == masks, name
