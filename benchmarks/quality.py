"""How close each way of forecasting is to the uncached run, at the same number of full steps.

    python -m benchmarks.quality                     every part: JSON, a table, plots and a contact sheet
    python -m benchmarks.quality --part budgets      one part; repeatable. The others keep what they measured before
    python -m benchmarks.quality --pictures 8        fewer pictures for each figure
    python -m benchmarks.quality --method learnt     of the part methods only this one, after a preset has changed
    python -m benchmarks.quality --missing           of the part methods what it lacks; goes on where it was ended

The reference is the uncached run of the same engine with the same seeds. Beside every method is the plain run of as few
steps as the method has full ones, which costs as much. Presets of `triton-taylorseer tune` were chosen with other
prompts (benchmarks/tuning_prompts.txt) and seeds. The perceptual distance is 1 - cosine of the features of
EfficientNet-Lite0, a classifier trained on ImageNet: it is not LPIPS and not FID.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import MODEL, check_least, parser_of, say, write
from benchmarks.quality_measures import PARTS, measure_again, measure_missing
from benchmarks.quality_studio import COUNT, COUNTS, MAIN, Studio, methods
from benchmarks.quality_tables import markdown
from taylorseer.learnt import LEARNT


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes JSON, Markdown, plots and contact sheet."""
    parser = parser_of("quality", __doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; default: all")
    parser.add_argument(
        "--method", action="append", help="measure only these again; repeatable; implies --part methods"
    )
    parser.add_argument(
        "--missing", action="store_true", help="of the part methods, measure only what the results do not have yet"
    )
    parser.add_argument("--pictures", type=int, default=128, help="of each figure; parts that cost more take fewer")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, pictures=1)
    from benchmarks.plots import draw_quality  # needs matplotlib: a missing package is reported before measuring

    torch.set_num_threads(1)
    path = arguments.output / "quality.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (arguments.method or arguments.missing) and "methods" not in result:
        parser.error(f"{path} has no part methods to go on with: --part methods measures it")
    if arguments.method:
        measure_again(result["methods"], frozenset(arguments.method))
        write(path, result)
    if arguments.missing:
        for _ in measure_missing(result["methods"]):
            write(path, result)  # each row at once
    for name in arguments.part or (() if arguments.method or arguments.missing else PARTS):
        measure, most = PARTS[name]
        pictures = min(most, arguments.pictures)
        result[name] = describe() | {"model": MODEL, "pictures": pictures} | measure(Studio(pictures))
        write(path, result)  # each part at once
    text = markdown(result)
    (arguments.output / "quality.md").write_text(text, encoding="utf-8")
    draw_quality(result, arguments.output / "quality.png")
    contact_sheet(Studio(6)).save(arguments.output / "quality_sheet.png")
    say(text)
    say(f"wrote {arguments.output}/quality.json, .md, .png and quality_sheet.png")


def contact_sheet(studio: Studio) -> Image.Image:
    """A row for each way, a column for each prompt: uncached, as few plain steps, TaylorSeer, learnt, and learnt with
    the fewest full steps."""
    ways = methods(studio.config, MAIN.num_steps, COUNT)
    judge = studio.judge(MAIN)
    rows = [judge.uncached, studio.judge(replace(MAIN, num_steps=COUNT)).uncached]
    fewest = methods(studio.config, MAIN.num_steps, COUNTS[0])
    rows += [judge.pictures(each) for each in (ways["TaylorSeer, order 2"], ways[LEARNT], fewest[LEARNT])]
    sheet = np.concatenate([np.concatenate([each[0] for each in row], axis=1) for row in rows])
    return Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
