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
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.environment import ROOT
from plugin.building.evaluate import SCORES, EvaluateRequest, evaluate, table
from plugin.repository import InvalidConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the pictures, prints the table, and writes pictures and JSON."""
    parser = argparse.ArgumentParser(
        prog="triton-taylorseer evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model of the repository")
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--prompts", type=Path, required=True, help="a file: a prompt, or a class label, in each line")
    parser.add_argument("--pictures", type=int, default=16, help="take the prompts in turn, each with another seed")
    parser.add_argument("--preset", action="append", default=[], help="repeatable; default: all of the model's")
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
        result = evaluate(_request(arguments))
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        parser.error(str(error))
    (arguments.output / "evaluate.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Console().print(table(result))
    Console().print(f"pictures and evaluate.json: {arguments.output}/", highlight=False)


def _request(arguments: argparse.Namespace) -> EvaluateRequest:
    lines = arguments.prompts.read_text(encoding="utf-8").splitlines()
    fields = {name: getattr(arguments, name) for name in ("guidance_scale", "height", "width", "num_frames")}
    return EvaluateRequest(
        model=arguments.model,
        model_repository=arguments.model_repository,
        prompts=tuple(line.strip() for line in lines if line.strip()),
        pictures=arguments.pictures,
        presets=tuple(arguments.preset),
        scores=tuple(arguments.score),
        reference=arguments.reference,
        output=arguments.output,
        fields={"num_inference_steps": arguments.steps, **fields},
    )


if __name__ == "__main__":
    main()
