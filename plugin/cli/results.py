"""What a finished request leaves: its file, and a sentence or a line of JSON about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from plugin.cli.terminal import fail, say

if TYPE_CHECKING:
    from triton_taylorseer_client import Generation


def announce(output: Path, result: Generation, json_lines: bool) -> None:
    """Says what was made: in a sentence on standard error, or as JSON on standard output."""
    report = result.report
    if json_lines:
        print(json.dumps({"output": str(output), "report": report}), flush=True)
        return
    full = len(report["full_steps"])
    say(
        f"{output}: {report['total_s']:.2f} s, {full} full and {report['num_steps'] - full} forecast steps, "
        f"seed {report['seed']}"
    )
    for warning in report.get("warnings", ()):
        say(f"note: {warning}")


def check_output(output: Path) -> None:
    """Ends the command if a result cannot be written to this file, before anything is made."""
    from PIL import Image

    known = {suffix for suffix, format_ in Image.registered_extensions().items() if format_ in Image.SAVE}
    if output.suffix.lower() not in {*known, ".mp4"}:
        fail(f"output is {output}, must end in .mp4, .png or another suffix that Pillow writes")
    if not output.parent.is_dir():
        fail(f"output is {output}, must be in a folder that exists")


def output_for(asked: Path | None, is_video: bool) -> Path:
    """The file to write: the one that was asked for, with another suffix if that does not fit the result."""
    if asked is None:
        return Path(f"out{suffix_of(is_video)}")
    if (asked.suffix.lower() == ".mp4") != is_video:
        return asked.with_suffix(suffix_of(is_video))
    return asked


def suffix_of(is_video: bool) -> str:
    """The suffix of a result's file if none was asked for."""
    return ".mp4" if is_video else ".png"
