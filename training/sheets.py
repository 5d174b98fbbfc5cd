"""Pictures of a pipeline, and contact sheets of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from training.data import SIZE
from training.text import MAX_SEQUENCE_LENGTH

Pixels = npt.NDArray[np.uint8]

_TILE, _LABEL = 128, 16  # pixels on a contact sheet


def generate(
    pipe: FluxPipeline, prompts: Sequence[str], steps: int, guidance_scale: float, seed: int, batch: int
) -> Pixels:
    """Pictures (N, 64, 64, 3) uint8 of the prompts, the i-th from the seed `seed + i`."""
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for start in tqdm(range(0, len(prompts), batch), "batches", disable=len(prompts) <= batch):
        part = list(prompts[start : start + batch])
        output = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            height=SIZE,
            width=SIZE,
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
            output_type="np",
        )
        pictures.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def contact_sheet(pictures: Pixels, prompts: Sequence[str], columns: int) -> Image.Image:
    """The pictures, doubled in size, each above its prompt."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * _TILE, rows * (_TILE + _LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = (i % columns) * _TILE, (i // columns) * (_TILE + _LABEL)
        sheet.paste(Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + 2, y + _TILE), prompt[:24], "black", font)
    return sheet


def sheet_prompts(trained: Sequence[str], held_out: Sequence[str], count: int = 16) -> list[str]:
    """Which prompts to watch: three quarters of them trained, the rest held out, evenly spaced in their order."""
    return [*_spaced(trained, count - count // 4), *_spaced(held_out, count // 4)]


def _spaced(prompts: Sequence[str], count: int) -> list[str]:
    return [prompts[round(i)] for i in np.linspace(0, len(prompts) - 1, min(count, len(prompts)))]
