"""What large memory pages gain on a CPU: a decode, and a forecast into new memory, with them and without.

An autoencoder of FLUX's size with random weights decodes a picture, and a feature is forecast from two anchors of
700 MB. Processes of either kind take turns, since torch decides on its pages once in a process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKL
from rich.console import Console
from rich.progress import track

from benchmarks.environment import RESULTS, ROOT, describe
from benchmarks.harness import check_least, parser_of, take_turns, warm_up, write
from plugin.ops.huge_pages import VARIABLE
from taylorseer.weighted_sum import weighted_sum

_WAYS = {"small_pages": "0", "huge_pages": "1"}
_CALLS = 3  # of either in a process


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the medians, and writes JSON; `--child` is one process of one kind."""
    parser = parser_of("huge_pages", __doc__)
    parser.add_argument("--turns", type=int, default=4, help="processes of either kind")
    parser.add_argument("--pixels", type=int, default=384, help="height and width of the picture")
    parser.add_argument("--bytes", type=int, default=700_000_000, help="of an anchor")
    parser.add_argument("--output", type=Path, default=RESULTS / "huge_pages.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1, pixels=8, bytes=4)
    if arguments.child:
        print(json.dumps(_seconds(arguments.pixels, arguments.bytes)))
        return
    result = measure(arguments.turns, arguments.pixels, arguments.bytes)
    write(arguments.output, result)
    Console().print_json(data={name: result[name] for name in (*_WAYS, "huge_over_small")})


def measure(turns: int, pixels: int, nbytes: int) -> dict[str, Any]:
    """Median seconds of each call, and the median over the turns of how much less the large pages take.

    Args:
        turns: processes of either kind.
        pixels: height and width of the decoded picture.
        nbytes: of an anchor.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in _WAYS}
    child = [sys.executable, "-m", "benchmarks.huge_pages", "--child", f"--pixels={pixels}", f"--bytes={nbytes}"]
    for _ in track(range(turns), "processes"):
        for name, value in _WAYS.items():
            environment = os.environ | {VARIABLE: value}
            done = subprocess.run(child, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            seconds[name].append(json.loads(done.stdout))
    calls = tuple(seconds["huge_pages"][0])
    pairs = list(zip(seconds["huge_pages"], seconds["small_pages"], strict=True))
    return (
        describe()
        | {"turns": turns, "pixels": pixels, "anchor_bytes": nbytes, "threads": torch.get_num_threads()}
        | {name: {call: median(each[call] for each in of) for call in calls} for name, of in seconds.items()}
        | {"huge_over_small": {call: median(huge[call] / small[call] for huge, small in pairs) for call in calls}}
    )


def _seconds(pixels: int, nbytes: int) -> dict[str, float]:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
    ).eval()
    latents = torch.randn(1, 16, pixels // 8, pixels // 8)
    slots = torch.randn(nbytes // 4).repeat(2, 1)
    calls = {
        "decode_s": lambda: vae.decode(latents),
        "forecast_into_new_memory_s": lambda: weighted_sum(slots, [-0.6, 1.6]),
    }
    seconds = {}
    with torch.no_grad():
        for name, call in calls.items():  # one kind after the other: each is faster in memory that it has used before
            warm_up({name: call})
            seconds[name] = median(take_turns({name: call}, _CALLS)[name])
    return seconds


if __name__ == "__main__":
    main()
