"""How close a forecast is to the memory's speed: its bandwidth over that of a plain copy of as many bytes.

    python -m benchmarks.bandwidth                   on the CPU
    python -m benchmarks.bandwidth --device cuda:0

A forecast of order O reads O+1 anchors and writes one feature over an earlier forecast, as requests do on a CPU. The
copy beside it reads and writes as many bytes. Both take turns, so that drift in the machine's speed affects them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import check_least, parser_of, say, show, take_turns, warm_up, write
from taylorseer import forecast_weights
from taylorseer.weighted_sum import weighted_sum

SIZES = (50_000, 1_000_000, 25_000_000, 700_000_000)  # bytes of an anchor; the first is the embedded model's
ORDERS = (1, 2, 4)
DTYPES = (torch.float32, torch.bfloat16)
_SMALL = 2_000_000  # bytes; below, one call is timed many times over
_REPEATS = 50


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes JSON."""
    parser = parser_of("bandwidth", __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=7, help="of every forecast and its copy")
    parser.add_argument("--bytes", type=int, action="append", help="of an anchor; repeatable; default: all sizes")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/bandwidth_<cpu or cuda>.json")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1)
    for size in arguments.bytes or ():
        if size < 1:
            parser.error(f"--bytes is {size}, must be at least 1")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device is {device}, but torch finds no GPU here")
    output = arguments.output or RESULTS / f"bandwidth_{device.type}.json"
    result = measure(device, arguments.turns, arguments.bytes or SIZES)
    write(output, result)
    _print(result)
    say(f"wrote {output}")


def measure(device: torch.device, turns: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Every size, dtype and order.

    Args:
        device: where to measure.
        turns: of every forecast and its copy.
        sizes: bytes of an anchor.
    """
    cases = [(size, dtype, order) for size in sizes for dtype in DTYPES for order in ORDERS]
    with torch.no_grad():
        rows = [_row(size, dtype, order, device, turns) for size, dtype, order in track(cases, "forecasts")]
    return describe() | {"device": str(device), "threads": torch.get_num_threads(), "turns": turns, "forecasts": rows}


def _row(size: int, dtype: torch.dtype, order: int, device: torch.device, turns: int) -> dict[str, Any]:
    elements = max(2, size // dtype.itemsize)
    slots = torch.randn(elements, device=device).to(dtype).repeat(order + 1, 1)
    source = torch.zeros((order + 2) * elements // 2, dtype=dtype, device=device)
    target = torch.zeros_like(source)
    earlier = torch.zeros_like(slots[0])
    weights = forecast_weights("taylor", order, [5 * i for i in range(order + 1)], 5 * order + 3).tolist()
    ways: dict[str, Callable[[], Any]] = {
        "forecast": lambda: weighted_sum(slots, weights, earlier),
        "copy": lambda: target.copy_(source),
    }
    repeats = _REPEATS if size < _SMALL else 1
    warm_up(ways, repeats)
    seconds = take_turns(ways, turns, device, repeats=repeats)
    moved = slots.nbytes + slots[0].nbytes
    forecast, copy = (median(each) for each in seconds.values())
    # Of each turn, so that a machine whose speed drifts does not decide.
    of_copy = median(b / a for a, b in zip(seconds["forecast"], seconds["copy"], strict=True))
    return {
        "anchor_bytes": slots[0].nbytes,
        "dtype": str(dtype).removeprefix("torch."),
        "order": order,
        "forecast_s": forecast,
        "copy_s": copy,
        "forecast_gb_per_s": moved / forecast / 1e9,
        "copy_gb_per_s": 2 * source.nbytes / copy / 1e9,
        "of_copy": of_copy,
    }


def _print(result: dict[str, Any]) -> None:
    show(
        f"forecasts on {result['device']}, {result['threads']} threads",
        ("an anchor", "dtype", "order", "forecast", "copy", "of copy"),
        [
            (
                f"{row['anchor_bytes'] / 1e6:g} MB",
                row["dtype"],
                str(row["order"]),
                *(f"{row[f'{way}_gb_per_s']:.1f} GB/s" for way in ("forecast", "copy")),
                f"{row['of_copy']:.0%}",
            )
            for row in result["forecasts"]
        ],
    )


if __name__ == "__main__":
    main()
