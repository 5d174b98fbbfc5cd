"""`triton-taylorseer evaluate`: the picture quality of a model's presets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plugin.cli.options import ModelArgument, ModelRepository, with_fields
from plugin.cli.terminal import counting_bar, fail, lines_of, quieten_libraries, say, show
from plugin.ops.huge_pages import ask_for_huge_pages
from plugin.paths import REPOSITORY

if TYPE_CHECKING:
    from plugin.building.evaluate import EvaluateRequest

Prompts = Annotated[Path, typer.Option(metavar="FILE", help="File with a prompt, or a class label, a line.")]
Pictures = Annotated[
    int, typer.Option(metavar="N", min=1, help="Number of pictures; they take the prompts in turn, each with its seed.")
]
Presets = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Preset to evaluate; repeatable. Default: all of the model's.")
]
Scores = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Published score to add, repeatable: clip, imagereward, fid, or vbench for videos."
    ),
]
Reference = Annotated[Path | None, typer.Option(metavar="FOLDER", help="For --score fid: a folder of real pictures.")]
Output = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the pictures and evaluate.json.")]


@with_fields("num_inference_steps", "guidance_scale", "height", "width", "num_frames")
def evaluate(
    model: ModelArgument,
    prompts: Prompts,
    fields: dict[str, Any],
    model_repository: ModelRepository = REPOSITORY,
    pictures: Pictures = 16,
    preset: Presets = None,
    score: Scores = None,
    reference: Reference = None,
    output: Output = Path("out/evaluate"),
) -> None:
    """Compares a model's presets, and plain runs of as few steps, with its uncached pictures.

    All make the same prompts with the same seeds and engine; options left out have the model's defaults. Needs the
    packages of the extra `bench`.

    Example:

      triton-taylorseer evaluate flux_dev --prompts my_prompts.txt --preset paper --score clip
    """
    from plugin.repository import InvalidConfig

    quieten_libraries()
    evaluation = _evaluation()
    try:
        repository, subjects = model_repository.resolve(), lines_of("prompts", prompts)
        presets, scores = tuple(preset or ()), tuple(score or ())
        request = evaluation.EvaluateRequest(
            model, repository, subjects, pictures, presets, scores, reference, output, fields
        )
        result = _evaluate(request)
    except KeyboardInterrupt:
        fail("cancelled")
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        fail(error)
    show(evaluation.table(result))
    say(f"pictures and evaluate.json: {output}/")


def _evaluation() -> Any:
    """The module that evaluates, if its packages are installed."""
    ask_for_huge_pages(os.environ)  # before anything imports torch, which reads it once
    try:
        import plugin.building.evaluate
    except ImportError as error:
        fail(f"{error}: pip install 'triton-taylorseer[bench]'")
    return plugin.building.evaluate


def _evaluate(request: EvaluateRequest) -> dict[str, Any]:
    from plugin.building.evaluate import evaluate

    with counting_bar() as bar:
        task = bar.add_task("evaluating", total=None)
        result = evaluate(request, lambda done, of: bar.update(task, total=of, completed=done))
    (request.output / "evaluate.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result
