"""Pictures of a pipeline, and contact sheets of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from training.data import SIZE
from training.text import MAX_SEQUENCE_LENGTH

Pixels = npt.NDArray[np.uint8]

_LABEL = 16  # pixels of a prompt's line


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


def contact_sheet(
    pictures: Pixels, prompts: Sequence[str], columns: int, *, scale: float = 2.0, marked: Collection[str] = ()
) -> Image.Image:
    """The pictures (N, height, width, 3), `scale` times as large, each above its prompt; marked prompts are blue."""
    height, width = (round(scale * pixels) for pixels in pictures.shape[1:3])
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + _LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = (i % columns) * width, (i // columns) * (height + _LABEL)
        sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + 2, y + height), prompt[: width // 5], "blue" if prompt in marked else "black", font)
    return sheet


def sheet_prompts(trained: Sequence[str], held_out: Sequence[str], count: int = 16) -> list[str]:
    """Which prompts to watch: three quarters of them trained, the rest held out, evenly spaced in their order."""
    return [*_spaced(trained, count - count // 4), *_spaced(held_out, count // 4)]


def _spaced(prompts: Sequence[str], count: int) -> list[str]:
    return [prompts[round(i)] for i in np.linspace(0, len(prompts) - 1, min(count, len(prompts)))]
