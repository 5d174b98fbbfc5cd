"""A training run in pieces: what is planned as a whole, what is done, and the options that both trainings share."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from tqdm import tqdm

from training.checkpoints import Checkpoint, last_checkpoint, read_checkpoint
from training.data import CACHE, DATA

CHECKPOINTS = CACHE / "checkpoints"
WARM_UP_STEPS = 100
SAVE_MINUTES = 4.0  # between checkpoints within a piece


@dataclass(frozen=True)
class Plan:
    """How much a run trains as a whole, in steps or in minutes; the schedule spans it, however many pieces it takes."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"a plan is in steps or in minutes, not {self}")

    def share(self, progress: Progress) -> float:
        """The share of the plan that is done, from 0 up; 1 is its end."""
        if self.steps is not None:
            return progress.steps / self.steps
        assert self.minutes is not None
        return progress.minutes / self.minutes


@dataclass
class Progress:
    """What a run has done in all its pieces."""

    steps: int = 0
    minutes: float = 0.0

    @property
    def warm_up(self) -> float:
        """The factor of the learning rate in the first steps: (0, 1]."""
        return min(1.0, (self.steps + 1) / WARM_UP_STEPS)


@dataclass(frozen=True)
class Piece:
    """When a piece ends, if its run's plan is not done before."""

    minutes: float
    steps: int | None = None

    def shares(self, plan: Plan, progress: Progress) -> Iterator[float]:
        """The share of the plan that is done, before each step that fits; counts the minutes, a step counts itself."""
        began, before = time.monotonic(), replace(progress)
        with tqdm(total=round(self.minutes * 60), unit="s") as bar:
            while True:
                elapsed_minutes = (time.monotonic() - began) / 60
                progress.minutes = before.minutes + elapsed_minutes
                bar.update(round(elapsed_minutes * 60) - bar.n)
                bar.set_postfix(step=progress.steps, refresh=False)
                steps = progress.steps - before.steps
                if elapsed_minutes >= self.minutes or steps == self.steps or plan.share(progress) >= 1:
                    return
                yield plan.share(progress)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is trained with; its later pieces take it from the checkpoint where their command does not say."""

    plan: Plan
    concepts: str | None = None  # as `trained_concepts` takes it
    batch: int

    @classmethod
    def of(cls, arguments: argparse.Namespace, saved: dict[str, Any] | None) -> Self:
        """From the command's options, and from what an earlier piece has saved.

        Without --total-minutes or --total-steps a first piece is the whole run.
        """
        given = {each.name: getattr(arguments, each.name, None) for each in fields(cls)}
        given["plan"] = None
        if arguments.total_steps is not None or arguments.total_minutes is not None:
            given["plan"] = Plan(arguments.total_steps, arguments.total_minutes)
        elif saved is not None:
            given["plan"] = Plan(**saved["plan"])
        else:
            given["plan"] = Plan(steps=arguments.steps) if arguments.steps else Plan(minutes=arguments.minutes)
        remembered = {name: value for name, value in (saved or {}).items() if name != "plan"}
        return cls(**remembered | {name: value for name, value in given.items() if value is not None})

    def saved(self) -> dict[str, Any]:
        """What `of` reads again."""
        return asdict(self)


def add_options(parser: argparse.ArgumentParser, minutes: float) -> None:
    """The options that both trainings have; those without a default are remembered from piece to piece."""
    piece = parser.add_argument_group("this piece")
    piece.add_argument(
        "--minutes", type=float, default=minutes, help="it trains for so long; loading and saving add to it"
    )
    piece.add_argument("--steps", type=int, help="or for so many steps, if that is sooner")
    piece.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    piece.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    piece.add_argument("--seed", type=int, default=0, help="of a first piece")
    folders = parser.add_argument_group("folders")
    folders.add_argument("--data", type=Path, default=DATA, help="what training.data has prepared")
    folders.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    run = parser.add_argument_group("the whole run; later pieces remember these")
    run.add_argument("--total-minutes", type=float, help="the schedule spans so many minutes of pieces [this piece]")
    run.add_argument("--total-steps", type=int, help="or so many steps")
    run.add_argument("--concepts", help="a file with one on each line, or all [training/concepts.txt]")
    run.add_argument("--batch", type=int, help="pictures of a step [by the device]")


def checkpoint_to_resume(folder: Path, resume: bool) -> Checkpoint | None:
    """The last checkpoint where a run goes on, None where one begins.

    Raises:
        FileNotFoundError: there is nothing to go on from.
        FileExistsError: a new run would take an earlier one's place.
    """
    last = last_checkpoint(folder)
    if resume and last is None:
        raise FileNotFoundError(f"{folder} has no checkpoint to resume from")
    if not resume and last is not None:
        raise FileExistsError(f"{last} is there: --resume goes on from it, --checkpoints FOLDER begins elsewhere")
    return None if last is None else read_checkpoint(last)


def check_unfinished(plan: Plan, progress: Progress) -> None:
    """Says how to train on where the plan is done.

    Raises:
        ValueError: the plan is done.
    """
    if plan.share(progress) >= 1:
        raise ValueError(f"{plan} is done after {progress}: a larger --total-steps or --total-minutes extends it")


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where it is safe, on a CPU and on a GPU."""
    return torch.autocast(device.type, torch.bfloat16)


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Adds a line to a log, and shows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record)
    with path.open("a", encoding="utf-8") as log:
        log.write(line + "\n")
    tqdm.write(line)
