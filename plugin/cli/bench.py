"""`triton-taylorseer bench`: how fast the embedded model is on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

Pictures = Annotated[int, typer.Option(metavar="N", help="Turns; each makes one picture in every way.")]
Steps = Annotated[int, typer.Option(metavar="N", help="Denoising steps.")]
Output = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File for the result. Default: benchmarks/results/cpu.json.")
]


def bench(pictures: Pictures = 20, steps: Steps = 50, output: Output = None) -> None:
    """Measures the embedded model on this machine's CPU, the cache off and on, in process and through Triton.

    Runs `python -m benchmarks.cpu`. Needs the packages of the extra `bench`.

    Examples:

      triton-taylorseer bench --pictures 5
    """
    options = ["--pictures", str(pictures), "--steps", str(steps)]
    if output is not None:
        options += ["--output", str(output)]
    # Nothing of the plugin imports a benchmark. The benchmark takes this process over, so that signals and the exit
    # code are its own.
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.cpu", *options])
