"""How near a forecast comes to the memory's speed: its bandwidth over that of a plain copy of as many bytes.

    python -m benchmarks.bandwidth                   on the CPU
    python -m benchmarks.bandwidth --device cuda:0

A forecast of order O reads O+1 anchors and writes one feature over an earlier forecast, as requests have it on a CPU;
the copy beside it reads and writes as many bytes. Both take turns, so that a machine whose speed drifts slows them
alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.environment import RESULTS, describe
from taylorseer import forecast_weights
from taylorseer.weighted_sum import weighted_sum

SIZES = (50_000, 1_000_000, 25_000_000, 700_000_000)  # bytes of an anchor; the first is the embedded model's
ORDERS = (1, 2, 4)
DTYPES = (torch.float32, torch.bfloat16)
_SMALL = 2_000_000  # bytes; below, one call is timed many times over
_REPEATS = 50


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes JSON."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.bandwidth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=7, help="of every forecast and its copy")
    parser.add_argument("--bytes", type=int, action="append", help="of an anchor; repeatable; default: all sizes")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/bandwidth_<cpu or cuda>.json")
    arguments = parser.parse_args(argv)
    for name, values in (("turns", [arguments.turns]), ("bytes", arguments.bytes or [])):
        for value in values:
            if value < 1:
                parser.error(f"--{name} is {value}, must be at least 1")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device is {device}, but torch finds no GPU here")
    output = arguments.output or RESULTS / f"bandwidth_{device.type}.json"
    result = measure(device, arguments.turns, arguments.bytes or SIZES)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(result)
    Console().print(f"wrote {output}", highlight=False, soft_wrap=True)


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
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    repeats = _REPEATS if size < _SMALL else 1
    for turn in range(turns + 1):
        for name, run in ways.items():
            taken = _timed(run, repeats, device)
            if turn:  # the first one fills allocators and caches
                seconds[name].append(taken)
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


def _timed(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / repeats


def _print(result: dict[str, Any]) -> None:
    table = Table(title=f"forecasts on {result['device']}, {result['threads']} threads")
    for column in ("an anchor", "dtype", "order", "forecast", "copy", "of copy"):
        table.add_column(column)
    for row in result["forecasts"]:
        rates = [f"{row[f'{way}_gb_per_s']:.1f} GB/s" for way in ("forecast", "copy")]
        share = f"{row['of_copy']:.0%}"
        table.add_row(f"{row['anchor_bytes'] / 1e6:g} MB", row["dtype"], str(row["order"]), *rates, share)
    Console().print(table)


if __name__ == "__main__":
    main()
