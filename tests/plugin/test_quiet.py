"""What a user sees of the libraries that quantise: nothing, unless they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.commands import COMMAND
from tests.support.paths import ROOT

pytest.importorskip("torchao", reason="only where it is installed has it anything to say")


@pytest.mark.parametrize(
    "command",
    [
        [COMMAND, "plan", "emoji", "--memory"],
        [sys.executable, "-c", "from plugin.quiet import quieten_quantizers as q; q(); import diffusers.quantizers"],
    ],
    ids=["command", "import"],
)
def test_nothing_is_said_of_kernels_that_are_not_there(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torchao" not in done.stderr
    assert "bitsandbytes" not in done.stderr
    assert "Failed to load" not in done.stderr
