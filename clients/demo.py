"""The demo: ten prompts with the cache off and on, a contact sheet, and a table of times and distances."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from clients.client import Client
from clients.messages import Generation, Pixels

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
_TILE = 192  # pixels of a picture on the contact sheet
_LABEL = 28
_MARGIN = 8


@dataclass(frozen=True)
class Pair:
    """One prompt with the cache off and on; seconds as the client sees them."""

    prompt: str
    off: Generation
    on: Generation
    off_s: float
    on_s: float

    @property
    def psnr_db(self) -> float:
        """Distance of the two pictures; infinite if they are equal."""
        return psnr(self.off.image, self.on.image)


def psnr(first: Pixels, second: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of one shape; infinite if they are equal."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def run(url: str, folder: Path) -> list[Pair]:
    """Makes the pictures on the server at `url`, writes them and a contact sheet to `folder`, and prints the table."""
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    with Client(url) as client:
        client.generate(PROMPTS[0], cache_interval=1)  # the first picture after a start is slower than the others
        pairs = []
        for prompt in PROMPTS:
            pair = _make_pair(client, prompt, console)
            console.print(f"{prompt}: {pair.off_s:.2f} s with the cache off, {pair.on_s:.2f} s on", highlight=False)
            pairs.append(pair)
    for pair in pairs:
        name = pair.prompt.replace(", ", "_").replace(" ", "_")
        pair.off.save(folder / f"{name}_cache_off.png")
        pair.on.save(folder / f"{name}_cache_on.png")
    sheet = folder / "contact_sheet.png"
    contact_sheet(pairs).save(sheet)
    console.print(_table(pairs))
    console.print(f"pictures: {folder}/, side by side: [bold]{sheet}[/]", highlight=False, soft_wrap=True)
    return pairs


def contact_sheet(pairs: list[Pair], columns: int = 2) -> Image.Image:
    """All pairs, cache off on the left and cache on on the right, with their prompts and times."""
    rows = -(-len(pairs) // columns)
    cell = (2 * _TILE + 3 * _MARGIN, _TILE + 2 * _LABEL + _MARGIN)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(18), ImageFont.load_default(13)
    for i, pair in enumerate(pairs):
        x, y = (i % columns) * cell[0] + _MARGIN, (i // columns) * cell[1]
        draw.text((x, y + 5), pair.prompt, "black", title)
        for label, seconds, result in (("cache off", pair.off_s, pair.off), ("cache on", pair.on_s, pair.on)):
            tile = Image.fromarray(result.image[0]).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x, y + _LABEL))
            full = len(result.report["full_steps"])
            draw.text((x, y + _LABEL + _TILE + 4), f"{label}: {full} full steps, {seconds:.2f} s", "dimgray", small)
            x += _TILE + _MARGIN
    return sheet


def _make_pair(client: Client, prompt: str, console: Console) -> Pair:
    off, off_s = _timed(client, prompt, console, "cache off", cache_interval=1)
    on, on_s = _timed(client, prompt, console, "cache on")
    return Pair(prompt, off, on, off_s, on_s)


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


def _table(pairs: list[Pair]) -> Table:
    table = Table(title="The cache off and on")
    for column in ("prompt", "off s", "on s", "speed-up", "full", "forecast", "PSNR dB"):
        table.add_column(column, justify="left" if column == "prompt" else "right")
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
    table.add_row("all", f"{off_s:.2f}", f"{on_s:.2f}", f"{off_s / on_s:.2f}x", "", "", f"{mean_psnr:.1f}")
    return table
