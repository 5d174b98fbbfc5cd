"""The command line: called in this process, parsed, and started in a process of its own."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.testing import CliRunner

from plugin.cli.app import app
from plugin.ops.server import free_ports
from tests.support.paths import BIN

COMMAND = str(BIN / "triton-taylorseer")

# The same with less patience: a server that does not end is killed 3 s after its time is up in place of 10 s, and a
# model's process has 4 s to answer the watch in place of 10 s.
IMPATIENT = """
import plugin.ops.server_config
import plugin.ops.watch
from plugin.cli.app import app

plugin.ops.server_config._LATE_S = 3
plugin.ops.watch._TIMEOUT_S = 4.0
app(prog_name="triton-taylorseer")
"""
IMPATIENT_COMMAND = [sys.executable, "-c", IMPATIENT]


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and output of `triton-taylorseer` with these arguments, in this process."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), "one sentence, no traceback"
    return result.exit_code, result.output


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What our command line makes of arguments; unknown ones are an error."""
    group = typer.main.get_command(app)
    command = group.commands[arguments[0]]  # type: ignore[attr-defined]
    return dict(command.make_context(arguments[0], arguments[1:]).params)


def port_options(http: int, grpc: int, metrics: int) -> list[str]:
    """The options of `serve` that choose its ports."""
    return ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]


def free_port_options() -> list[str]:
    """The same for ports that are free."""
    http, grpc, metrics = free_ports(3)
    return port_options(http, grpc, metrics)
