"""Pictures of 64 fixed prompts, the cache off and with its default: what the embedded model can do, and what it cannot.

    python -m benchmarks.sheet

The last 16 prompts are cells (concept and style) that training never saw; their names are in blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.environment import ROOT
from benchmarks.harness import MODEL, config_of, parser_of, say
from plugin.building.judge import Judge, offline_host
from plugin.serving.plan import example_request
from training.data import held_out_cells, read_lines
from training.sheets import contact_sheet

PROMPTS = Path(__file__).with_name("sheet_prompts.txt")
SEED = 7
_COLUMNS, _SCALE = 8, 1.5


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the pictures in process, without a server, and writes the sheet."""
    parser = parser_of("sheet", __doc__)
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="a file with one in each line")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/emoji_sheet.png")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    prompts = read_lines(arguments.prompts)
    if not prompts:
        parser.error(f"{arguments.prompts} has no prompts, must have one a line")
    config = config_of(MODEL)
    requests = [example_request(config, prompt=prompt, seed=arguments.seed) for prompt in prompts]
    judge = Judge(offline_host(config), requests, config.max_sequence_length, config.engine_lanes)
    cached = judge.pictures(config.defaults.cache)
    pairs = np.stack([np.hstack([off[0], on[0]]) for off, on in zip(judge.uncached, cached, strict=True)])
    sheet = contact_sheet(pairs, prompts, _COLUMNS, scale=_SCALE, marked=held_out_cells())
    sheet.save(arguments.output, optimize=True)
    say(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
