"""`triton-taylorseer tune`: a preset for a number of full steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from plugin.cli.options import ModelArgument, ModelRepository, with_fields
from plugin.cli.terminal import console, fail, lines_of, quieten_libraries, say, show
from plugin.paths import REPOSITORY

if TYPE_CHECKING:
    from plugin.building.tuning import TunedModel, TuneRequest

FullSteps = Annotated[int, typer.Option(metavar="K", help="Number of full steps.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the preset; default tuned-K for K full steps.")]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with a prompt, or a class label, a line. Default: four of our own."),
]
Pictures = Annotated[
    int, typer.Option(metavar="N", min=1, help="Pictures to tune on; as many others measure the result.")
]


@with_fields("num_inference_steps", "guidance_scale", "height", "width", "num_frames")
def tune(
    model: ModelArgument,
    full_steps: FullSteps,
    fields: dict[str, Any],
    model_repository: ModelRepository = REPOSITORY,
    name: Name = None,
    prompts: Prompts = None,
    pictures: Pictures = 8,
) -> None:
    """Finds the full steps and the predictor whose pictures are closest to the uncached ones, and saves a preset.

    Request options that are left out get the model's defaults.

    Examples:

      triton-taylorseer tune emoji --full-steps 10
      triton-taylorseer tune flux_dev --full-steps 12 --prompts my_prompts.txt --pictures 4
    """
    from plugin.building.tuning import TuneRequest
    from plugin.repository import InvalidConfig

    quieten_libraries()
    folder = model_repository.resolve() / f"{model.removesuffix('_stream')}_stream"
    preset = name or f"tuned-{full_steps}"
    try:
        tuned = _tune(folder, preset, TuneRequest(full_steps, lines_of("prompts", prompts), pictures, fields))
    except KeyboardInterrupt:
        fail("cancelled, nothing is saved")
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        fail(error)
    show(_table(preset, tuned, pictures))
    say(f"saved in {tuned.path}; choose it by cache_preset={preset}, as the model's default by that parameter")


def _tune(folder: Path, preset: str, request: TuneRequest) -> TunedModel:
    from plugin.building.tuning import tune_model

    with console.status("loading the model") as status:
        return tune_model(
            folder, preset, request, lambda tried, best: status.update(f"{tried} settings tried, best {best:.2f} dB")
        )


def _table(preset: str, tuned: TunedModel, pictures: int) -> Table:
    table = Table(title=f"{preset}: {tuned.cache.predictor}, order {tuned.cache.order}, {tuned.cache.schedule}")
    for column in ("PSNR to the uncached pictures, dB", "spread evenly", "tuned"):
        table.add_column(column)
    table.add_row(f"the {pictures} pictures it was tuned on", f"{tuned.even_psnr:.1f}", f"{tuned.psnr:.1f}")
    table.add_row(f"{pictures} others", f"{tuned.judged_even_psnr:.1f}", f"{tuned.judged_psnr:.1f}")
    return table
