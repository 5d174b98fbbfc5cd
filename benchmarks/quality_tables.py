"""The results of `benchmarks.quality` as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality_studio import COUNT
from taylorseer import COORDINATES


def markdown(result: Mapping[str, Any]) -> str:
    """The parts of a result as Markdown tables."""
    return "\n".join(TABLES[name](result[name]) for name in TABLES if name in result)


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(each) for each in cells)} |\n"


def _head(cells: Sequence[str]) -> str:
    return _row(cells) + _row(["---"] * len(cells))


def _methods_table(part: Mapping[str, Any]) -> str:
    rows = part["rows"]
    columns = list(dict.fromkeys((row["setting"], row["full_steps"]) for row in rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    settings = list(dict.fromkeys(setting for setting, _ in columns))
    text = ""
    for setting in settings:
        counts = sorted(count for each, count in columns if each == setting)
        found = {(row["method"], row["full_steps"]): row for row in rows if row["setting"] == setting}
        text += (
            f"**{setting}**, {part['pictures']} pictures: PSNR in dB / SSIM / perceptual distance / seconds of one, "
        )
        text += "by full steps\n\n"
        text += _head(["method", *map(str, counts)])
        for name in names:
            cells = [_figures(found.get((name, count))) for count in counts]
            text += _row([name, *cells]) if any(cell != "-" for cell in cells) else ""
        text += "\n"
    return text


def _figures(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['psnr']:.1f} / {row['ssim']:.3f} / {row['perceptual']:.4f} / {row['seconds']:.2f}"


def _coordinates_table(part: Mapping[str, Any]) -> str:
    text = f"**Coordinates**, {part['setting']}, {part['full_steps']} full, {part['pictures']} pictures: PSNR in dB\n\n"
    text += _head(["predictor", "full steps", *COORDINATES])
    for row in part["rows"]:
        figures = [f"{row['psnr'][name]:.1f}" for name in COORDINATES]
        text += _row([f"{row['predictor']}, order {row['order']}", row["schedule"], *figures])
    return text


def _budgets_table(part: Mapping[str, Any]) -> str:
    text = f"**Error budgets**, {part['setting']}: 5th, 50th and 95th percentile over {part['pictures']} pictures\n\n"
    text += _head(["max_error", "full steps", "PSNR in dB", "same schedule beside other requests"])
    for row in part["rows"]:
        spreads = [" / ".join(f"{each:.3g}" for each in np.percentile(row[key], (5, 50, 95))) for key in _SPREAD]
        text += _row([row["max_error"], *spreads, "yes" if row["same_schedule_in_company"] else "no"])
    return text


def _few_steps_table(part: Mapping[str, Any]) -> str:
    text = "**Few steps**, half of them full and evenly spread: PSNR in dB to the uncached run of as many steps, "
    text += f"{part['pictures']} pictures\n\n"
    names = dict.fromkeys(key for row in part["rows"] for key in row if key not in ("num_steps", "full_steps"))
    text += _head(["steps", "full", *names])
    for row in part["rows"]:
        found = (f"{row[name]:.1f}" if name in row else "-" for name in names)
        text += _row([row["num_steps"], row["full_steps"], *found])
    return text


def _ranking_line(part: Mapping[str, Any]) -> str:
    low, high = part["psnr_range"]
    return (
        f"**Features or pictures**, {part['setting']}: of {part['schedules']} schedules of {COUNT} full steps near the "
        f"even one, pictures have {low:.1f} to {high:.1f} dB; the one with the least error of forecast features has "
        f"{part['psnr_of_least_error']:.1f}, and the rank correlation of that error with the PSNR is "
        f"{part['rank_correlation']:.2f}; {part['pictures']} pictures of each\n"
    )


def _features_table(part: Mapping[str, Any]) -> str:
    text = (
        f"**What is forecast**, {part['setting']}, {part['full_steps']} full, {part['pictures']} pictures on torch\n\n"
    )
    text += _head(["feature", "full steps", "predictor", "PSNR in dB", "KiB of anchors"])
    for row in part["rows"]:
        predictor = f"{row['predictor']}, order {row['order']}"
        text += _row([row["feature"], row["schedule"], predictor, f"{row['psnr']:.1f}", f"{row['bytes'] / 2**10:.0f}"])
    return text


_SPREAD = ("full_steps", "psnr")
TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "methods": _methods_table,
    "coordinates": _coordinates_table,
    "budgets": _budgets_table,
    "few_steps": _few_steps_table,
    "ranking": _ranking_line,
    "features": _features_table,
}
