"""Picture quality of a model's presets, and of as few plain steps, beside the uncached run.

    triton-taylorseer evaluate emoji --prompts benchmarks/prompts.txt --pictures 16
    triton-taylorseer evaluate flux_dev --prompts my_prompts.txt --preset paper --score clip --score imagereward

Every picture is written under --output, a folder for each way. PSNR, SSIM and the distance of EfficientNet-Lite0
features are to the uncached pictures of the same prompts and seeds, made by the same engine. --score adds published
scores through their own packages: clip, imagereward, fid (to --reference) and, for videos, vbench.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.environment import ROOT, describe
from benchmarks.quality import distances
from benchmarks.scores import ScoreMissing, clip_score, fid, image_reward, vbench
from plugin.building.tuning import OFF, Judge, offline_host
from plugin.config import ModelConfig
from plugin.denoising.run import Pixels
from plugin.denoising.media import encode
from plugin.repository import InvalidConfig
from plugin.request import GenerationRequest
from plugin.serving.plan import example_request
from taylorseer import CacheConfig

SCORES = ("clip", "imagereward", "fid", "vbench")
UNCACHED = "uncached"


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the pictures, prints the table, and writes pictures and JSON."""
    parser = argparse.ArgumentParser(
        prog="triton-taylorseer evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model of the repository")
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--prompts", type=Path, required=True, help="a prompt, or a class label, a line")
    parser.add_argument("--pictures", type=int, default=16, help="each prompt in turn, each time round another seed")
    parser.add_argument("--preset", action="append", help="repeatable; default: all of the model's")
    parser.add_argument("--steps", type=int, help="denoising steps; default: the model's")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--num-frames", type=int)
    parser.add_argument("--score", action="append", choices=SCORES, default=[], help="repeatable")
    parser.add_argument("--reference", type=Path, help="for fid: a folder of real pictures")
    parser.add_argument("--output", type=Path, default=Path("out/evaluate"))
    arguments = parser.parse_args(argv)
    if arguments.pictures < 1:
        parser.error(f"--pictures is {arguments.pictures}, must be at least 1")
    if "fid" in arguments.score and arguments.reference is None:
        parser.error("--score fid needs --reference, a folder of real pictures")
    try:
        result = evaluate(arguments)
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        parser.error(str(error))
    (arguments.output / "evaluate.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Console().print(_table(result))
    Console().print(f"pictures and evaluate.json: {arguments.output}/", highlight=False)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of the uncached run and of every way, with the pictures written.

    Raises:
        InvalidConfig, ValueError: the model, a field or a preset; the message says which.
        OSError: weights, prompts or output.
    """
    config = ModelConfig.from_folder(arguments.model_repository / f"{arguments.model.removesuffix('_stream')}_stream")
    prompts = [line.strip() for line in arguments.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    requests, subjects = _requests(config, prompts, arguments)
    ways = _ways(config, arguments.preset, requests[0].num_inference_steps)
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    host = offline_host(config)

    def judged(asked: Sequence[GenerationRequest]) -> Judge:
        return Judge(host, asked, config.max_sequence_length, config.engine_lanes)

    judge = judged(requests)
    rows = []
    for name, (cache, num_steps) in track(ways.items(), "evaluating"):
        if num_steps is not None:
            made = judged([replace(each, num_inference_steps=num_steps) for each in requests]).uncached
        else:
            made = judge.uncached if cache == OFF else judge.pictures(cache)
        row: dict[str, Any] = {"way": name, "full_steps": num_steps or len(cache.full_steps(judge.num_steps))}
        row |= distances(_frames(made), _frames(judge.uncached))
        files = _write(made, arguments.output / name.replace(" ", "_"), requests[0].fps)
        rows.append(row | _scores(arguments, files, subjects))
    return describe() | {
        "model": arguments.model,
        "engine": config.engine,
        "pictures": len(requests),
        "num_steps": judge.num_steps,
        "rows": rows,
    }


def _requests(
    config: ModelConfig, prompts: Sequence[str], arguments: argparse.Namespace
) -> tuple[list[GenerationRequest], list[str]]:
    fields = {name: getattr(arguments, name) for name in ("guidance_scale", "height", "width", "num_frames")}
    subjects = [prompts[i % len(prompts)] for i in range(arguments.pictures)]
    takes_prompt = config.limits.takes_prompt
    requests = [
        example_request(
            config,
            **({"prompt": subject} if takes_prompt else {"class_label": int(subject)}),
            seed=seed,
            num_inference_steps=arguments.steps,
            **fields,
        )
        for seed, subject in enumerate(subjects)
    ]
    return requests, subjects


def _ways(
    config: ModelConfig, presets: Sequence[str] | None, num_steps: int
) -> Mapping[str, tuple[CacheConfig, int | None]]:
    """name -> cache settings, and the number of steps where it is not the request's."""
    for name in presets or ():
        if name not in config.presets:
            raise ValueError(f"preset is {name!r}, must be one of: {', '.join(config.presets)}")
    chosen = {name: config.presets[name] for name in presets or config.presets}
    counts = sorted({len(cache.full_steps(num_steps)) for cache in chosen.values()})
    plain = {f"{count} plain steps": (OFF, count) for count in counts if count < num_steps}
    return {UNCACHED: (OFF, None)} | plain | {name: (cache, None) for name, cache in chosen.items()}


def _frames(videos: Sequence[Pixels]) -> list[Pixels]:
    """(height, width, 3) of every frame of every picture or video."""
    return [frame for video in videos for frame in video]


def _write(made: Sequence[Pixels], folder: Path, fps: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, frames in enumerate(made):
        files.append(folder / (f"{number:04}.png" if len(frames) == 1 else f"{number:04}.mp4"))
        files[-1].write_bytes(encode(frames, fps))
    return files


def _scores(arguments: argparse.Namespace, files: Sequence[Path], subjects: Sequence[str]) -> dict[str, Any]:
    """The scores that were asked for; in place of one that cannot be had, why."""
    known: dict[str, Callable[[], Any]] = {
        "clip": lambda: clip_score(files, subjects),
        "imagereward": lambda: image_reward(files, subjects),
        "fid": lambda: fid(files[0].parent, arguments.reference),
        "vbench": lambda: vbench(files[0].parent),
    }
    found: dict[str, Any] = {}
    for name in arguments.score:
        try:
            found[name] = known[name]()
        except ScoreMissing as error:
            found[name] = f"not here: {error}"
    return found


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['model']}: {result['pictures']} pictures, {result['num_steps']} steps, engine {result['engine']}"
    table = Table(title=title)
    names = [name for name in result["rows"][0] if name != "way"]
    table.add_column("way")
    for name in names:
        table.add_column(name)
    for row in result["rows"]:
        table.add_row(
            row["way"], *(f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names)
        )
    return table


if __name__ == "__main__":
    main()
