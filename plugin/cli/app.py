"""The Typer application: its commands in the order of its help."""

from __future__ import annotations

import typer

from plugin.cli.bench import bench
from plugin.cli.build import build
from plugin.cli.demo import demo
from plugin.cli.evaluate import evaluate
from plugin.cli.front import front
from plugin.cli.generate import generate
from plugin.cli.health import health
from plugin.cli.help import Command, Group
from plugin.cli.plan import plan
from plugin.cli.serve import serve
from plugin.cli.tune import tune
from plugin.quiet import quieten_quantizers

quieten_quantizers()
app = typer.Typer(
    name="triton-taylorseer",
    cls=Group,
    help="Serves diffusion transformers on Triton Inference Server, with a TaylorSeer cache for each request.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# What follows -- belongs to tritonserver.
app.command(cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command(cls=Command)(generate)
app.command(cls=Command)(front)
app.command(cls=Command)(health)
app.command(cls=Command)(plan)
app.command(cls=Command)(build)
app.command(cls=Command)(tune)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(bench)
app.command(cls=Command, hidden=True)(demo)  # behind `make demo`
