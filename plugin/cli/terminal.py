"""What commands print: sentences, errors, progress bars, and the pieces of their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

console = Console(stderr=True)


def say(message: object) -> None:
    """Prints a sentence for people, on standard error."""
    console.print(str(message), markup=False, highlight=False, soft_wrap=True)


def show(result: RenderableType) -> None:
    """Prints a result, for example a table, on standard output."""
    Console().print(result)


def fail(error: object) -> NoReturn:
    """Prints an error in one sentence and ends the command with exit code 1."""
    console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def lines_of(option: str, path: Path | None) -> tuple[str, ...]:
    """The prompts of a file, a line each, at least one; none without a file.

    Args:
        option: the command's option that names the file, for the error.
        path: of the file, in UTF-8; lines that begin with # are comments.

    Raises:
        OSError, ValueError: it cannot be read, or it is empty.
    """
    from clients.lines import read_lines

    if path is None:
        return ()
    lines = tuple(text for _, text in read_lines(path))
    if not lines:
        raise ValueError(f"{option} is {path}, which is empty: must hold a prompt a line")
    return lines


def two_columns(title: str, rows: dict[str, str]) -> Table:
    """A table of names and what they stand for."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def binary(nbytes: int) -> str:
    """A number of bytes in KiB, MiB or GiB."""
    unit = 3 if nbytes >= 2**30 else 2 if nbytes >= 2**20 else 1
    return f"{nbytes / 1024**unit:.1f} {'KMG'[unit - 1]}iB"


def quieten_libraries() -> None:
    """Keeps the terminal for our progress bars: the libraries' own messages do not help the user of a command."""
    import logging
    import warnings

    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # it warns that float16 cannot run on a CPU, but it can
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)


def counting_bar() -> Progress:
    """A bar with how many are done, of how many."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


class StepsBar:
    """The bar of a request's steps, with the picture so far above it if the terminal can show it."""

    def __init__(self, preview: bool) -> None:
        self._bar = counting_bar()
        self._live = Live(self._bar, console=console) if preview and console.is_terminal else None

    def __enter__(self) -> StepsBar:
        (self._live or self._bar).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        (self._live or self._bar).__exit__(*error)

    def begin(self, title: str, steps: int | None) -> None:
        """Starts the bar; `steps` is None as long as their number is not known."""
        self._title = title
        self._task = self._bar.add_task(title, total=steps)

    def wait(self, position: int) -> None:
        """Shows the request's place in the server's queue; 0 if it is not queued."""
        place = f": number {position} in the queue" if position else ""
        self._bar.update(self._task, description=f"{self._title}{place}")

    def step(self, step: int, steps: int, picture: Any) -> None:
        """Shows that `step` of `steps` steps are done; `picture` is (height, width, 3) uint8, or None."""
        self._bar.update(self._task, total=steps, completed=step)
        if self._live is not None and picture is not None:
            from PIL import Image
            from rich_pixels import Pixels

            image = Image.fromarray(picture)
            image.thumbnail((min(64, console.width), 64))  # two pixels of height are one line of text
            self._live.update(Group(Pixels.from_image(image), self._bar), refresh=True)


class BuildBar(Progress):
    """The stages of a build, with the outer phases of TensorRT's compiler; a `BuildProgress` of the engines."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), console=console
        )
        self.cancelled = False
        self._stage: TaskID | None = None
        self._phases: dict[str, tuple[int, TaskID | None]] = {}  # depth, and a bar unless it is too deep

    def stage(self, name: str) -> None:
        if self.cancelled:
            raise KeyboardInterrupt
        if self._stage is not None:
            self.update(self._stage, total=1, completed=1)
        self._stage = self.add_task(name, total=None)

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        depth = 0 if parent not in self._phases else self._phases[parent][0] + 1
        self._phases[name] = depth, self.add_task("  " * depth + f"  {name}", total=steps) if depth < 2 else None

    def step_done(self, name: str, step: int) -> bool:
        _, task = self._phases.get(name, (0, None))
        if task is not None:
            self.update(task, completed=step + 1)
        return not self.cancelled

    def phase_ended(self, name: str) -> None:
        _, task = self._phases.pop(name, (0, None))
        if task is not None:
            self.remove_task(task)
