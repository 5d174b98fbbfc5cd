"""`triton-taylorseer tune`: presets with learnt forecast weights, for one number of full steps or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from plugin.cli.options import ModelArgument, ModelRepository, with_fields
from plugin.cli.terminal import counting_bar, fail, lines_of, quieten_libraries, say, show
from plugin.paths import REPOSITORY

if TYPE_CHECKING:
    from plugin.building.tuning import TunedModel, TuneRequest

FullSteps = Annotated[list[int], typer.Option(metavar="K", help="Number of full steps; repeatable.")]
Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the preset, if it is one; default tuned-K for K full steps.")
]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with a prompt, or a class label, a line. Default: four of our own."),
]
Pictures = Annotated[
    int, typer.Option(metavar="N", min=1, help="Pictures to learn from; as many others measure the result.")
]
Order = Annotated[int, typer.Option(metavar="O", min=0, help="A forecast weighs the newest O+1 anchors; at most 8.")]
Tries = Annotated[int, typer.Option(metavar="N", min=0, help="Schedules to compare for each preset.")]
Lengths = Annotated[
    list[int] | None,
    typer.Option(
        "--also-steps", metavar="N", help="Other number of steps to fit weights for; repeatable. Default: 1/2 and 3/4."
    ),
]
Rows = Annotated[int | None, typer.Option(metavar="N", min=1, help="Most rows of one engine call. Default: no limit.")]
Refine = Annotated[
    int, typer.Option(metavar="N", min=0, help="Iterations of gradients after the fit, on the torch engine.")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the search.")]


@with_fields("num_inference_steps", "guidance_scale", "height", "width", "num_frames")
def tune(
    model: ModelArgument,
    full_steps: FullSteps,
    fields: dict[str, Any],
    model_repository: ModelRepository = REPOSITORY,
    name: Name = None,
    prompts: Prompts = None,
    pictures: Pictures = 16,
    order: Order = 4,
    tries: Tries = 200,
    also_steps: Lengths = None,
    rows: Rows = None,
    refine: Refine = 0,
    search_seed: Seed = 0,
) -> None:
    """Finds the full steps and the forecast weights whose pictures are closest to the uncached ones; saves presets.

    Request options that are left out get the model's defaults. A tuning that was ended goes on where it was when the
    same command runs again.

    Examples:

      triton-taylorseer tune emoji --full-steps 8 --full-steps 12 --prompts my_prompts.txt
      triton-taylorseer tune flux_dev --full-steps 12 --pictures 8 --tries 100 --rows 4
    """
    from plugin.building.tuning import TuneRequest
    from plugin.repository import InvalidConfig

    quieten_libraries()
    folder = model_repository.resolve() / f"{model.removesuffix('_stream')}_stream"
    try:
        if name is not None and len(full_steps) > 1:
            raise ValueError(f"name is {name!r}, must be left out for several presets: each is tuned-K")
        lengths = None if also_steps is None else tuple(also_steps)
        subjects, counts = lines_of("prompts", prompts), tuple(dict.fromkeys(full_steps))
        request = TuneRequest(counts, subjects, pictures, fields, order, tries, lengths, rows, search_seed, refine)
        tuned = _tune(folder, request, {} if name is None else {full_steps[0]: name})
    except KeyboardInterrupt:
        fail("cancelled: presets that were found are saved, and the same command goes on from here")
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        fail(error)
    show(_table(tuned, pictures))
    names = ", ".join(each.name for each in tuned)
    say(f"saved in {tuned[0].path}: {names}; a request chooses one by cache_preset, as does the model's parameter")


def _tune(folder: Path, request: TuneRequest, names: dict[int, str]) -> list[TunedModel]:
    from plugin.building.tuning import TuningEvents, tune_model

    class Bars(TuningEvents):
        """A bar for the search of each preset, and a line for what goes on besides."""

        def __init__(self, bar: Progress) -> None:
            self._bar = bar
            self._tasks: dict[str, TaskID] = {}
            self._stage = bar.add_task("", total=None)

        def stage(self, text: str) -> None:
            self._bar.update(self._stage, description=text)

        def tried(self, name: str, tries: int, tried: int, best: float) -> None:
            text = f"{name}: {best:.1f} dB"
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(text, total=tries)
            self._bar.update(self._tasks[name], description=text, completed=tried)

    with counting_bar() as bar:
        return tune_model(folder, request, names, Bars(bar))


def _table(tuned: Sequence[TunedModel], pictures: int) -> Table:
    table = Table(title=f"PSNR to the uncached pictures, dB, {pictures} pictures that nothing was learnt from")
    for column in ("preset", "full steps", "chebyshev, evenly spread", "learnt"):
        table.add_column(column)
    for each in tuned:
        table.add_row(each.name, each.cache.schedule, f"{each.even_psnr:.1f}", f"{each.psnr:.1f}")
    return table
