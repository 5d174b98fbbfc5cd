"""What a pipeline makes without a picture: tuning, evaluation and calibration have none to give it."""

from __future__ import annotations

from diffusers import DiffusionPipeline

from plugin.serving.plan import architecture_of_pipe
from plugin.tasks import Task


def task_from_text(pipe: DiffusionPipeline) -> Task:
    """The task of a pipeline that takes no picture.

    Raises:
        ValueError: it has none.
    """
    tasks = architecture_of_pipe(pipe).tasks
    found = next((task for task in tasks if not task.pictures), None)
    if found is None:
        raise ValueError(
            f"pipeline is a {tasks[0].pipeline}, must be one that needs no picture: there is none to try it with"
        )
    return found
