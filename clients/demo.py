"""The demo: ten prompts and four edits with the cache off and on, contact sheets, a table of times and distances."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from triton_taylorseer_client.client import Client
from triton_taylorseer_client.messages import Generation, Pixels

PROMPTS = (
    "red apple, 3d",
    "sunflower, noto",
    "tiger face, twemoji",
    "rocket, fluent",
    "cactus, flat",
    "hamburger, 3d",
    "penguin, noto",
    "rainbow, twemoji",
    "octopus, flat",
    "birthday cake, fluent",
)
SEED = 7


@dataclass(frozen=True)
class Edit:
    """A picture that is changed.

    Attributes:
        of: the prompt in `PROMPTS` whose picture it is.
        prompt: what is to be seen.
        box: the part that is repainted, left, top, right and bottom as shares of the sides; None for all of it.
    """

    of: str
    prompt: str
    box: tuple[float, float, float, float] | None = None


EDITS = (
    Edit("octopus, flat", "octopus, 3d"),
    Edit("red apple, 3d", "lemon, 3d", (0, 0, 0.5, 1)),
    Edit("hamburger, 3d", "pizza, 3d", (0, 0, 1, 0.5)),
    Edit("sunflower, noto", "rainbow, noto", (0.25, 0.25, 0.75, 0.75)),
)
_STRENGTH = 0.6
_SHADE = 0.45  # of what is kept, on the picture of an edit with a mask
_TILE = 192  # pixels of a picture on the contact sheet
_LABEL = 28
_MARGIN = 8


@dataclass(frozen=True)
class Pair:
    """One prompt with the cache off and on; seconds as the client sees them.

    Attributes:
        before: the picture that was changed, (height, width, 3) uint8; None where the prompt stands alone.
        mask: what of it was repainted, (height, width) bool; None for all.
    """

    prompt: str
    off: Generation
    on: Generation
    off_s: float
    on_s: float
    before: Pixels | None = None
    mask: npt.NDArray[np.bool_] | None = None

    @property
    def psnr_db(self) -> float:
        """Distance of the two pictures; infinite if they are equal."""
        return psnr(self.off.image, self.on.image)


def psnr(first: Pixels, second: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of one shape; infinite if they are equal."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def run(url: str, folder: Path) -> list[Pair]:
    """Makes the pictures on the server at `url`, writes them and contact sheets to `folder`, and prints the table."""
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    with Client(url) as client:
        client.generate(PROMPTS[0], cache_interval=1)  # the first picture after a start is slower than the others
        pairs = [_make_pair(client, prompt, console) for prompt in PROMPTS]
        pictures = {pair.prompt: pair.off.image[0] for pair in pairs}
        edits = [_make_edit(client, edit, pictures[edit.of], console) for edit in EDITS]
    for pair in [*pairs, *edits]:
        name = pair.prompt.replace(", ", "_").replace(" ", "_")
        pair.off.save(folder / f"{name}_cache_off.png")
        pair.on.save(folder / f"{name}_cache_on.png")
    sheets = folder / "contact_sheet.png", folder / "edits.png"
    contact_sheet(pairs).save(sheets[0])
    contact_sheet(edits).save(sheets[1])
    console.print(_table(pairs, edits))
    shown = " and ".join(f"[bold]{sheet}[/]" for sheet in sheets)
    console.print(f"pictures: {folder}/, side by side: {shown}", highlight=False, soft_wrap=True)
    return pairs


def contact_sheet(pairs: list[Pair], columns: int = 2) -> Image.Image:
    """All pairs, cache off on the left and cache on on the right, with their prompts and times; before an edit its
    picture, on which what is kept is shaded."""
    rows = -(-len(pairs) // columns)
    tiles = max(len(_tiles(pair)) for pair in pairs)
    cell = (tiles * (_TILE + _MARGIN) + _MARGIN, _TILE + 2 * _LABEL + _MARGIN)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(18), ImageFont.load_default(13)
    for i, pair in enumerate(pairs):
        x, y = (i % columns) * cell[0] + _MARGIN, (i // columns) * cell[1]
        draw.text((x, y + 5), pair.prompt, "black", title)
        for label, pixels in _tiles(pair):
            tile = Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x, y + _LABEL))
            draw.text((x, y + _LABEL + _TILE + 4), label, "dimgray", small)
            x += _TILE + _MARGIN
    return sheet


def _tiles(pair: Pair) -> list[tuple[str, Pixels]]:
    """What a contact sheet shows of a pair, from left to right, each with its line."""
    made = []
    for label, seconds, result in (("cache off", pair.off_s, pair.off), ("cache on", pair.on_s, pair.on)):
        full = len(result.report["full_steps"])
        made.append((f"{label}: {full} full steps, {seconds:.2f} s", result.image[0]))
    if pair.before is None:
        return made
    if pair.mask is None:
        return [("before", pair.before), *made]
    shaded = np.where(pair.mask[..., None], pair.before, (pair.before * _SHADE).astype(np.uint8))
    return [("before; what is dark is kept", shaded), *made]


def _make_pair(client: Client, prompt: str, console: Console) -> Pair:
    off, off_s = _timed(client, prompt, console, "cache off", cache_interval=1)
    on, on_s = _timed(client, prompt, console, "cache on")
    console.print(f"{prompt}: {off_s:.2f} s with the cache off, {on_s:.2f} s on", highlight=False)
    return Pair(prompt, off, on, off_s, on_s)


def _make_edit(client: Client, edit: Edit, before: Pixels, console: Console) -> Pair:
    fields: dict[str, Any] = {"input_image": before, "strength": _STRENGTH}
    mask = None if edit.box is None else _mask(edit.box, *before.shape[:2])
    if mask is not None:
        fields["mask_image"] = mask
    off, off_s = _timed(client, edit.prompt, console, "cache off", cache_interval=1, **fields)
    on, on_s = _timed(client, edit.prompt, console, "cache on", **fields)
    console.print(f"{edit.of} -> {edit.prompt}: {off_s:.2f} s with the cache off, {on_s:.2f} s on", highlight=False)
    return Pair(edit.prompt, off, on, off_s, on_s, before, mask)


def _mask(box: tuple[float, float, float, float], height: int, width: int) -> npt.NDArray[np.bool_]:
    """(height, width): True within the box."""
    left, top, right, bottom = box
    mask = np.zeros((height, width), np.bool_)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return mask


def _timed(client: Client, prompt: str, console: Console, label: str, **fields: Any) -> tuple[Generation, float]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{prompt} ({label})", total=None)
        began = time.perf_counter()
        for update in client.stream(prompt, seed=SEED, **fields):
            if isinstance(update, Generation):
                return update, time.perf_counter() - began
            bar.update(task, total=update.num_steps, completed=update.step)
    raise AssertionError("a stream ends with a generation or an error")


def _table(pairs: list[Pair], edits: list[Pair]) -> Table:
    """A row for each, and the sums of the prompts and of the edits."""
    table = Table(title="The cache off and on")
    for column in ("prompt", "off s", "on s", "speed-up", "full", "forecast", "PSNR dB"):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for group, name in ((pairs, "all prompts"), (edits, "all edits")):
        _add_rows(table, group, name)
    return table


def _add_rows(table: Table, pairs: list[Pair], name: str) -> None:
    for pair in pairs:
        full, steps = len(pair.on.report["full_steps"]), pair.on.report["num_steps"]
        table.add_row(
            pair.prompt,
            f"{pair.off_s:.2f}",
            f"{pair.on_s:.2f}",
            f"{pair.off_s / pair.on_s:.2f}x",
            f"{full} of {steps}",
            f"{steps - full}",
            f"{pair.psnr_db:.1f}",
        )
    off_s, on_s = (sum(getattr(pair, name) for pair in pairs) for name in ("off_s", "on_s"))
    mean_psnr = float(np.mean([pair.psnr_db for pair in pairs]))
    table.add_section()
    table.add_row(name, f"{off_s:.2f}", f"{on_s:.2f}", f"{off_s / on_s:.2f}x", "", "", f"{mean_psnr:.1f}")
    table.add_section()
