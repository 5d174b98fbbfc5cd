"""The command line: serve, generate, plan, build, bench, and the demo behind `make demo`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from plugin.plan import Plan

app = typer.Typer(
    name="triton-taylorseer",
    help="Serves diffusion transformers on Triton Inference Server, with a TaylorSeer cache for each request.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_FORWARD)
def serve(
    context: typer.Context,
    model_repository: Annotated[Path, typer.Option(help="Folder of models.")] = REPOSITORY,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option()] = 8000,
    grpc_port: Annotated[int, typer.Option()] = 8001,
    metrics_port: Annotated[int, typer.Option()] = 8002,
    model: Annotated[
        list[str] | None, typer.Option(help="A model to serve; repeatable. Default: all that need no download.")
    ] = None,
) -> None:
    """Starts Triton in the foreground. What follows -- goes to tritonserver."""
    from plugin.repository import models_to_download
    from plugin.server import ServerConfig, ServerError, run_foreground

    config = ServerConfig(
        model_repository.resolve(), host, http_port, grpc_port, metrics_port, tuple(model or ()), tuple(context.args)
    )

    def tell() -> None:
        console.print(
            f"[bold green]ready[/]: HTTP {host}:{http_port}, gRPC {host}:{grpc_port}, "
            f"metrics {host}:{metrics_port}; Ctrl-C stops",
            highlight=False,
            soft_wrap=True,
        )

    _say(f"loading the models of {config.model_repository} …")
    if not config.models:
        for name, hub_id in models_to_download(config.model_repository, os.environ).items():
            _say(f"{name} is left out: {hub_id} is not on this machine, `--model {name}` downloads it")
    try:
        raise typer.Exit(run_foreground(config, tell))
    except ServerError as error:
        _fail(error)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to show; models of a class label take none.")] = None,
    url: Annotated[str, typer.Option(help="host:port of Triton's gRPC endpoint.")] = "localhost:8001",
    model: Annotated[str, typer.Option(help="The model's name.")] = "emoji",
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: random.")] = None,
    class_label: Annotated[int | None, typer.Option(help="For models of a class label.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames of a video.")] = None,
    preset: Annotated[str | None, typer.Option(help="Cache settings by name, for example paper.")] = None,
    interval: Annotated[int | None, typer.Option(help="Every N-th step is full; 1 turns the cache off.")] = None,
    order: Annotated[int | None, typer.Option(help="Order of the forecast.")] = None,
    warmup: Annotated[int | None, typer.Option(help="First steps, all full.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Every step full, as --interval 1.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write. Default: out.png, or out.mp4 for a video.")
    ] = None,
) -> None:
    """Makes a picture or a video on a running server."""
    from clients import Client, Generation, GenerationError

    if no_cache and interval not in (None, 1):
        _fail(f"--interval is {interval} beside --no-cache, must be left out or 1")
    if output is not None:
        _check_suffix(output)
    fields: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "class_label": class_label,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "cache_preset": preset,
        "cache_interval": 1 if no_cache else interval,
        "cache_order": order,
        "cache_warmup_steps": warmup,
    }
    try:
        with Client(url, model) as client, _steps_bar() as bar:
            task = bar.add_task(prompt or f"class {class_label}", total=steps)
            for update in client.stream(prompt, **fields):
                if isinstance(update, Generation):
                    result = update
                    bar.update(task, total=result.report["num_steps"], completed=result.report["num_steps"])
                else:
                    bar.update(task, total=update.num_steps, completed=update.step)
        output = _fitting(output, result.is_video)
        result.save(output)
    except KeyboardInterrupt:
        _fail("cancelled")
    except (GenerationError, OSError, ValueError) as error:
        _fail(error)
    report = result.report
    full = len(report["full_steps"])
    _say(
        f"{output}: {report['total_s']:.2f} s, {full} full and {report['num_steps'] - full} forecast steps, "
        f"seed {report['seed']}"
    )


@app.command()
def build(
    model: Annotated[str, typer.Argument(help="A model of the repository.")],
    model_repository: Annotated[Path, typer.Option(help="Folder of models.")] = REPOSITORY,
) -> None:
    """Builds a model's engine ahead of serving it."""
    from plugin.engines.build import build_model
    from plugin.repository import InvalidConfig

    folder = model_repository.resolve() / f"{model.removesuffix('_stream')}_stream"
    try:
        with console.status("") as status:
            paths = build_model(folder, lambda stage: status.update(escape(stage)))
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        _fail(error)
    for path in paths:
        _say(path)
    if not paths:
        _say("the model's engine needs no build")


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A model of the repository.")],
    model_repository: Annotated[Path, typer.Option(help="Folder of models.")] = REPOSITORY,
    negative_prompt: Annotated[str | None, typer.Option(help="Of the request; any text counts the same.")] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames of a video.")] = None,
    preset: Annotated[str | None, typer.Option(help="Cache settings by name, for example paper.")] = None,
    interval: Annotated[int | None, typer.Option(help="Every N-th step is full; 1 turns the cache off.")] = None,
    order: Annotated[int | None, typer.Option(help="Order of the forecast.")] = None,
    warmup: Annotated[int | None, typer.Option(help="First steps, all full.")] = None,
) -> None:
    """Tells what a request will cost, without loading the model."""
    from plugin.config import ModelConfig
    from plugin.plan import architecture_of, plan_request
    from plugin.repository import InvalidConfig
    from plugin.request import parse_request

    name = model.removesuffix("_stream")
    fields: dict[str, Any] = {
        "negative_prompt": None if negative_prompt is None else negative_prompt.encode(),
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "cache_preset": None if preset is None else preset.encode(),
        "cache_interval": interval,
        "cache_order": order,
        "cache_warmup_steps": warmup,
    }
    given = {field: value for field, value in fields.items() if value is not None}
    try:
        config = ModelConfig.from_folder(model_repository.resolve() / f"{name}_stream")
        subject = {"prompt": b"any"} if config.limits.takes_prompt else {"class_label": 0}
        request = parse_request({**subject, **given}, config.defaults, config.limits, 0, config.presets)
        architecture = architecture_of(config.source.pipeline)
        planned = plan_request(config, architecture, request)
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        _fail(error)
    frames = f", {request.num_frames} frames" if request.num_frames > 1 else ""
    title = f"{name} ({architecture.transformer}), height {request.height}, width {request.width}{frames}"
    Console().print(_plan_table(title, planned))


@app.command(context_settings=_FORWARD)
def bench(context: typer.Context) -> None:
    """Measures the embedded model on this machine's CPU; options as in `python -m benchmarks.cpu --help`."""
    import benchmarks.cpu
    from plugin.server import ServerError

    try:
        benchmarks.cpu.main(context.args)
    except ServerError as error:
        _fail(error)


@app.command(hidden=True)
def demo(output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out")) -> None:
    """Starts a server, makes ten pictures with the cache off and on, and compares them."""
    from clients import GenerationError
    from clients.demo import run
    from plugin.server import Server, ServerConfig, ServerError, free_ports

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # the server's `with` block then stops it
    http_port, grpc_port, metrics_port = free_ports(3)
    config = ServerConfig(REPOSITORY, "127.0.0.1", http_port, grpc_port, metrics_port, ("emoji",))
    status = console.status("starting tritonserver")
    try:
        with status, Server(config, on_progress=lambda stage: status.update(escape(stage))) as server:
            status.stop()
            run(server.grpc_url, output)
    except (ServerError, GenerationError, OSError) as error:
        _fail(error)


def _plan_table(title: str, plan: Plan) -> Table:
    def anchors(anchor_bytes: int) -> str:
        return f"{plan.branches} x {plan.anchors} anchors of {_binary(anchor_bytes)}"

    full_steps = ", ".join(map(str, plan.full_steps))
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    for row in (
        ("full steps", f"{len(plan.full_steps)} of {plan.num_steps}: {full_steps}"),
        ("speed-up, upper bound", f"{plan.speed_up_bound:.2f}x: steps / full steps"),
        ("guidance branches", str(plan.branches)),
        ("feature", f"{plan.tokens} tokens x {plan.width}"),
        ("cache", f"{_binary(plan.cache_bytes)}: {anchors(plan.anchor_bytes)}"),
        ("cache of every module", f"{_binary(plan.module_cache_bytes)}: {anchors(plan.module_anchor_bytes)}"),
    ):
        table.add_row(*row)
    return table


def _binary(nbytes: int) -> str:
    unit = 3 if nbytes >= 2**30 else 2 if nbytes >= 2**20 else 1
    return f"{nbytes / 1024**unit:.1f} {'KMG'[unit - 1]}iB"


def _steps_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _check_suffix(output: Path) -> None:
    from PIL import Image

    known = {suffix for suffix, format_ in Image.registered_extensions().items() if format_ in Image.SAVE}
    if output.suffix.lower() not in {*known, ".mp4"}:
        _fail(f"output is {output}, must end in .mp4, .png or another suffix that Pillow writes")
    if not output.parent.is_dir():
        _fail(f"output is {output}, must be in a folder that exists")


def _fitting(output: Path | None, is_video: bool) -> Path:
    """The file to write: what was asked for, unless its kind turned out to be the other one."""
    if output is None:
        return Path("out.mp4" if is_video else "out.png")
    if (output.suffix.lower() == ".mp4") != is_video:
        return output.with_suffix(".mp4" if is_video else ".png")
    return output


def _say(message: object) -> None:
    console.print(str(message), markup=False, highlight=False, soft_wrap=True)


def _fail(error: object) -> NoReturn:
    console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)
