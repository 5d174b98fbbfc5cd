"""Pictures of 64 fixed prompts, the cache off and with its default: what the embedded model can do, and what it cannot.

    python -m benchmarks.sheet

The last 16 prompts are cells (concept and style) that training never saw; their names stand in blue.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from benchmarks.environment import ROOT
from plugin.config import ModelConfig
from plugin.generation import Pixels
from plugin.plan import example_request
from plugin.tuning import Judge, offline_host

MODEL = "emoji"
PROMPTS = Path(__file__).with_name("sheet_prompts.txt")
HELD_OUT = ROOT / "training/held_out.txt"
SEED = 7
_COLUMNS = 8
_TILE, _LABEL, _MARGIN = 96, 18, 6  # pixels of the sheet


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the pictures in process, without a server, and writes the sheet."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.sheet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="one a line")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/emoji_sheet.png")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    prompts = [line for line in arguments.prompts.read_text(encoding="utf-8").splitlines() if line]
    if not prompts:
        parser.error(f"{arguments.prompts} has no prompts, must have one a line")
    config = ModelConfig.from_folder(ROOT / "model_repository" / f"{MODEL}_stream")
    requests = [example_request(config, prompt=prompt, seed=arguments.seed) for prompt in prompts]
    judge = Judge(offline_host(config), requests, config.max_sequence_length, config.engine_lanes)
    cached = judge.pictures(config.defaults.cache)
    pairs = [(off[0], on[0]) for off, on in zip(judge.uncached, cached, strict=True)]
    sheet(prompts, pairs, set(HELD_OUT.read_text(encoding="utf-8").splitlines())).save(arguments.output, optimize=True)
    Console().print(f"wrote {arguments.output}", highlight=False, soft_wrap=True)


def sheet(prompts: Sequence[str], pairs: Sequence[tuple[Pixels, Pixels]], held_out: set[str]) -> Image.Image:
    """Each pair of pictures (height, width, 3), the cache off on the left, under its prompt."""
    rows = -(-len(pairs) // _COLUMNS)
    width, height = 2 * _TILE + 2 * _MARGIN, _TILE + _LABEL + _MARGIN
    image = Image.new("RGB", (_COLUMNS * width, rows * height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for i, (prompt, pair) in enumerate(zip(prompts, pairs, strict=True)):
        x, y = (i % _COLUMNS) * width + _MARGIN, (i // _COLUMNS) * height
        draw.text((x, y + 2), prompt[:34], "blue" if prompt in held_out else "black", font)
        for picture in pair:
            tile = Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            image.paste(tile, (x, y + _LABEL))
            x += _TILE
    return image


if __name__ == "__main__":
    main()
