"""Help: there at once, every option with a sentence, and no types where they say nothing."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer

from plugin.cli.app import app
from plugin.fields import FIELDS
from tests.support.commands import run
from tests.support.paths import ROOT

GROUP = typer.main.get_command(app)
COMMANDS = GROUP.commands  # type: ignore[attr-defined]
HEAVY = {"torch", "numpy", "diffusers", "transformers", "tritonclient", "grpc", "fastapi", "uvicorn", "onnx", "PIL"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_with_what_it_does(name):
    code, output = run(name, "--help")
    assert code == 0
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", output).split())
    for parameter in COMMANDS[name].params:
        assert parameter.help, parameter.name
        assert parameter.help[0].isupper() or parameter.help.startswith(("N:", "bf16", "onnxruntime")), parameter.help
        assert parameter.help.endswith("."), parameter.help
        assert all(option in output for option in parameter.opts if option.startswith("-")), parameter.name
        beginning = " ".join(parameter.help.split()[:4])
        assert beginning in words, beginning


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_no_types(name):
    _, output = run(name, "--help")
    assert "<" not in output
    assert "{" not in output


def test_without_a_command_help_lists_them():
    _, output = run()
    listed = [name for name in COMMANDS if name != "demo"]
    assert all(re.search(rf"│ {name} +[A-Z]", output) for name in listed)
    assert "demo" not in output
    assert "<bool>" not in output


def test_every_field_with_an_option_is_an_option_of_generate():
    options = {option for parameter in COMMANDS["generate"].params for option in parameter.opts}
    assert {field.option for field in FIELDS if field.option} <= options


def test_help_loads_nothing_heavy():
    check = f"""
import contextlib, io, sys
from plugin.cli.app import app
for name in ({", ".join(map(repr, COMMANDS))}, None):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as output:
        app(["--help"] if name is None else [name, "--help"])
    assert "Usage" in output.getvalue(), name
    loaded = {HEAVY} & set(sys.modules)
    assert not loaded, (name, loaded)
"""
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
