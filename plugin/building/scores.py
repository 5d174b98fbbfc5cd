"""Published scores through their own packages, where those and their weights are available.

None of these packages is a dependency of this one, and their weights are in no package registry. A score that is not
available raises `ScoreMissing`, which says what to install.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

CLIP = "openai/clip-vit-base-patch16"
VBENCH_DIMENSIONS = (  # those that VBench computes for videos of any prompt
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)


class ScoreMissing(Exception):
    """A score's package or weights are missing; the message says what to install."""


def clip_score(files: Sequence[Path], prompts: Sequence[str], model: str = CLIP) -> float:
    """CLIPScore (arXiv 2104.08718) by transformers' CLIPModel: 100 times the cosine of picture and prompt, at least 0;
    the mean. (torchmetrics 1.9.0, which has it too, does not work with transformers 5.)

    Args:
        files: pictures.
        prompts: one for each.
        model: a hub id or a folder.

    Raises:
        ScoreMissing: the model's weights.
    """
    network = _weights(f"CLIP {model}", lambda: CLIPModel.from_pretrained(model))
    processor = _weights(f"CLIP {model}", lambda: CLIPProcessor.from_pretrained(model))
    cosines = []
    for file, prompt in zip(files, prompts, strict=True):
        picture = Image.open(file).convert("RGB")
        inputs = processor(text=[prompt], images=[picture], return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            embedded = network(**inputs)  # unit vectors (1, width)
        cosines.append(float((embedded.image_embeds * embedded.text_embeds).sum()))
    return 100 * float(np.mean(np.maximum(cosines, 0)))


def image_reward(files: Sequence[Path], prompts: Sequence[str]) -> float:
    """ImageReward v1.0 (arXiv 2304.05977) by its own package: the mean over the pictures.

    Raises:
        ScoreMissing: the package or its weights.
    """
    package = _package("ImageReward", "image-reward")
    model = _weights("ImageReward-v1.0", lambda: package.load("ImageReward-v1.0"))
    with torch.no_grad():
        return float(np.mean([model.score(prompt, str(file)) for file, prompt in zip(files, prompts, strict=True)]))


def fid(folder: Path, reference: Path) -> float:
    """Frechet Inception distance of two folders of pictures, by clean-fid (arXiv 2104.11222).

    Raises:
        ScoreMissing: the package or Inception's weights.
    """
    package = _package("cleanfid.fid", "clean-fid")
    return float(_weights("Inception", lambda: package.compute_fid(str(folder), str(reference), num_workers=0)))


def vbench(folder: Path) -> dict[str, float]:
    """VBench (arXiv 2311.17982) of a folder of videos, by its own package: the dimensions that need no prompts of its
    own.

    Raises:
        ScoreMissing: the package or its weights.
    """
    package = _package("vbench", "vbench")
    info = Path(package.__file__).parent / "VBench_full_info.json"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with TemporaryDirectory() as output:
        bench = package.VBench(device, str(info), output)
        options: dict[str, Any] = {"dimension_list": [*VBENCH_DIMENSIONS], "mode": "custom_input"}
        _weights("VBench", lambda: bench.evaluate(videos_path=str(folder), name="videos", **options))
        found = json.loads((Path(output) / "videos_eval_results.json").read_text(encoding="utf-8"))
    return {dimension: float(value[0]) for dimension, value in found.items()}


def _package(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ScoreMissing(f"{distribution} cannot be imported ({error}): pip install {distribution}") from None


def _weights(what: str, load: Callable[[], Any]) -> Any:
    """The result of what loads weights on its first call, from a hub or a cache."""
    try:
        return load()
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ScoreMissing(
            f"the weights of {what} cannot be had ({reason}): this machine must reach their hub once"
        ) from error
