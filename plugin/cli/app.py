"""The command line: serve, front, generate, health, plan, build, tune, bench, and the demo behind `make demo`."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from plugin.paths import REPOSITORY

if TYPE_CHECKING:
    from clients import Generation
    from plugin.engines.tensorrt.record import BuiltEngine, Profile
    from plugin.serving.plan import Plan

app = typer.Typer(
    name="triton-taylorseer",
    help="Serves diffusion transformers on Triton Inference Server, with a TaylorSeer cache for each request.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

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
    """Starts Triton in the foreground. What follows -- goes to tritonserver.

    Who loads or unloads models over the network must send a key: TAYLORSEER_CONTROL_KEY of the environment, or else
    one that nobody knows.
    """
    from plugin.ops import control
    from plugin.ops.foreground import run_foreground
    from plugin.ops.server import ServerConfig, ServerError
    from plugin.repository import models_to_download

    config = ServerConfig(
        model_repository.resolve(),
        host,
        http_port,
        grpc_port,
        metrics_port,
        tuple(model or ()),
        tuple(context.args),
        control_key=os.environ.get(control.ENVIRONMENT) or control.new_key(),
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
        raise typer.Exit(run_foreground(config, tell, _say))
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
    predictor: Annotated[str | None, typer.Option(help="How features are forecast, for example newton.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Where full steps lie: interval, even, or '0 4 9 13'.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Every step full, as --interval 1.")] = False,
    max_error: Annotated[float | None, typer.Option(help="Error budget of the forecasts.")] = None,
    deadline_ms: Annotated[int | None, typer.Option(help="Milliseconds after which the server gives up.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write; a folder with --batch. Default: out.png, out.mp4 for a video, or out.",
        ),
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(help="File with a prompt, or a JSON object of fields, on each line.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Requests of a batch in flight.")] = 4,
    retries: Annotated[int, typer.Option(min=0, help="How often to come back where the server has no room.")] = 2,
    preview: Annotated[bool, typer.Option("--preview", help="Show the picture in the terminal as it comes.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print file and report as JSON, a line for each.")] = False,
) -> None:
    """Makes a picture or a video on a running server, or many of them with --batch."""
    from clients import Client, Generation, GenerationError

    if no_cache and interval not in (None, 1):
        _fail(f"--interval is {interval} beside --no-cache, must be left out or 1")
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
        "cache_predictor": predictor,
        "cache_schedule": schedule,
        "cache_max_error": max_error,
        "deadline_ms": deadline_ms,
    }
    if batch is not None:
        if prompt is not None or preview:
            _fail("--batch stands alone, must be without a prompt and --preview")
        _generate_batch(batch, output or Path("out"), fields, url, model, jobs, retries, json_lines)
        return
    if output is not None:
        _check_suffix(output)
    try:
        with Client(url, model, retries=retries) as client, _Steps(preview) as bar:
            bar.begin(prompt or f"class {class_label}", steps)
            for update in client.stream(prompt, **fields, preview=preview or None):
                if isinstance(update, Generation):
                    result = update
                    bar.step(result.report["num_steps"], result.report["num_steps"], result.image[0])
                else:
                    bar.step(update.step, update.num_steps, update.preview)
        output = _fitting(output, result.is_video)
        result.save(output)
    except KeyboardInterrupt:
        _fail("cancelled")
    except (GenerationError, OSError, ValueError) as error:
        _fail(error)
    _tell(output, result, json_lines)


def _generate_batch(
    file: Path, folder: Path, fields: dict[str, Any], url: str, model: str, jobs: int, retries: int, json_lines: bool
) -> None:
    import asyncio

    from clients import Generation, GenerationError
    from clients.batch import BatchItem, read_batch, run_batch

    failed = 0
    with _steps_bar() as bar:

        def done(item: BatchItem, result: Generation | GenerationError) -> None:
            nonlocal failed
            bar.advance(task)
            if isinstance(result, Generation):
                output = folder / f"{item.stem}{'.mp4' if result.is_video else '.png'}"
                result.save(output)
                _tell(output, result, json_lines)
                return
            failed += 1
            _say(f"{file}:{item.line}: {item.title}: {result}")
            if json_lines:
                print(json.dumps({"line": item.line, "error": str(result)}), flush=True)

        try:
            items = read_batch(file, {name: value for name, value in fields.items() if value is not None})
            folder.mkdir(parents=True, exist_ok=True)
            task = bar.add_task(str(file), total=len(items))
            asyncio.run(run_batch(items, url=url, model=model, jobs=jobs, retries=retries, done=done))
        except KeyboardInterrupt:
            _fail("cancelled")
        except ExceptionGroup as errors:  # what a folder or a disk has against it
            _fail(errors.exceptions[0])
        except (OSError, ValueError) as error:
            _fail(error)
    if failed:
        _fail(f"{failed} of {len(items)} requests failed")


def _tell(output: Path, result: Generation, json_lines: bool) -> None:
    """What became of a request, in a sentence for people or as JSON on standard output."""
    report = result.report
    if json_lines:
        print(json.dumps({"output": str(output), "report": report}), flush=True)
        return
    full = len(report["full_steps"])
    _say(
        f"{output}: {report['total_s']:.2f} s, {full} full and {report['num_steps'] - full} forecast steps, "
        f"seed {report['seed']}"
    )
    for warning in report.get("warnings", ()):
        _say(f"note: {warning}")


@app.command()
def front(
    triton: Annotated[str, typer.Option(help="host:port of Triton's gRPC endpoint.")] = "localhost:8001",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 9000,
    model: Annotated[
        str | None, typer.Option(help="For requests that name none. Default: the first that is ready.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a request may take. Default: no limit.")] = None,
) -> None:
    """Serves OpenAI's images API and a web page in front of a running Triton.

    With TAYLORSEER_API_KEY in the environment, clients must send it as their key.
    """
    import uvicorn

    from clients.openai_api import create_app

    api_key = os.environ.get("TAYLORSEER_API_KEY") or None
    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        _say("note: whoever reaches this port can use it; TAYLORSEER_API_KEY in the environment asks for a key")
    application = create_app(triton, default_model=model, api_key=api_key, timeout_s=timeout)
    _say(f"http://{host}:{port} has a page, http://{host}:{port}/v1 OpenAI's images API; Ctrl-C stops")
    # Streams in progress are given as long as Triton gives its own; header names of uvicorn tell nobody anything.
    uvicorn.run(
        application, host=host, port=port, log_level="warning", server_header=False, timeout_graceful_shutdown=30
    )


@app.command()
def health(
    url: Annotated[str, typer.Option(help="host:port of Triton's gRPC endpoint.")] = "localhost:8001",
    model: Annotated[str, typer.Option(help="The model's name.")] = "emoji",
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 15.0,
) -> None:
    """Makes a picture of one step: Triton's own health endpoints stay green when a model's process has died."""
    from clients import Client, GenerationError, InvalidArgument, Unavailable

    fields: dict[str, Any] = {"num_inference_steps": 1, "priority": 60, "timeout_s": timeout}
    try:
        with Client(url, model) as client:
            try:
                client.generate("health", **fields)
            except InvalidArgument:  # a model of a class label
                client.generate(class_label=0, **fields)
    except Unavailable as error:
        if "try again in" not in str(error):  # a full line is a sign of life
            _fail(error)
    except (GenerationError, OSError, ValueError) as error:
        _fail(error)
    _say("healthy")


@app.command()
def build(
    model: Annotated[str, typer.Argument(help="A model of the repository.")],
    model_repository: Annotated[Path, typer.Option(help="Folder of models.")] = REPOSITORY,
    engine: Annotated[
        str | None, typer.Option(help="onnxruntime, tensorrt or tensorrt-rtx. Default: the model's.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="bf16, fp16, fp32 or fp8, for TensorRT. Default: the model's dtype.")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="MIN,OPT,MAX", help="Rows of one engine call. Default: those of one request."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW,…", help="Pixels, an optimization profile for each. Default: the model's."),
    ] = None,
    num_frames: Annotated[
        str | None, typer.Option(metavar="N,…", help="Frames of videos, each with each size. Default: the model's.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="SM…", help="GPUs that TensorRT-RTX compiles for, as SM89,SM120. Default: the one here."),
    ] = None,
    workspace: Annotated[float | None, typer.Option(help="GiB of scratch that the engine may plan with.")] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Let weights be exchanged later.")] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Let weights stay in host memory.")
    ] = False,
    calibration_prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For fp8: a prompt a line. Default: four of our own.")
    ] = None,
    calibration_steps: Annotated[
        int | None, typer.Option(help="For fp8: steps recorded of each prompt at each size. Default: 4.")
    ] = None,
    calibration_sizes: Annotated[
        str | None, typer.Option(metavar="HxW[xFRAMES],…", help="For fp8: sizes to record at. Default: those built.")
    ] = None,
) -> None:
    """Builds a model's engine ahead of serving it."""
    from plugin.building.build_model import BuildRequest, build_model
    from plugin.engines.base import EngineError
    from plugin.repository import InvalidConfig, variable

    _quieten_libraries()
    folder = model_repository.resolve() / f"{model.removesuffix('_stream')}_stream"
    bar = _BuildBar()
    try:
        request = BuildRequest(
            engine=engine,
            precision=precision,
            batch=_batch(batch),
            sizes=tuple(_size(each) for each in _parts(size)),
            num_frames=tuple(_integer("num-frames", each) for each in _parts(num_frames)),
            targets=tuple(_parts(target)),
            workspace_bytes=None if workspace is None else int(workspace * 2**30),
            refit=refit,
            weight_streaming=weight_streaming,
            calibration_prompts=_lines("calibration-prompts", calibration_prompts),
            calibration_steps=calibration_steps,
            calibration_sizes=tuple(_video_size(each) for each in _parts(calibration_sizes)),
        )
        # In a thread of its own, so that Ctrl-C is heard while the compiler works.
        with bar, ThreadPoolExecutor(1) as worker:
            building = worker.submit(build_model, folder, request, bar)
            try:
                built = building.result()
            except KeyboardInterrupt:
                bar.cancelled = True
                bar.console.print("ending at the next step of the build …")
                raise
    except KeyboardInterrupt:
        _fail("cancelled")
    except (InvalidConfig, EngineError, OSError, ValueError, TypeError) as error:
        _fail(error)
    for each in built:
        _say(each.path)
        if each.engine is not None:
            Console().print(_engine_table(each.transformer, each.engine))
            settings = [f"{variable(model, name)}={value} " for name, value in each.overrides.items()]
            _say(f"serve it: {''.join(settings)}triton-taylorseer serve --model {model.removesuffix('_stream')}")
    if not built:
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
    predictor: Annotated[str | None, typer.Option(help="How features are forecast, for example newton.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Where full steps lie: interval, even, or '0 4 9 13'.")] = None,
) -> None:
    """Tells what a request will cost, without loading the model."""
    from plugin.config import ModelConfig
    from plugin.repository import InvalidConfig
    from plugin.serving.plan import architecture_of, example_request, plan_request

    name = model.removesuffix("_stream")
    fields: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "cache_preset": preset,
        "cache_interval": interval,
        "cache_order": order,
        "cache_warmup_steps": warmup,
        "cache_predictor": predictor,
        "cache_schedule": schedule,
    }
    try:
        config = ModelConfig.from_folder(model_repository.resolve() / f"{name}_stream")
        request = example_request(config, **fields)
        architecture = architecture_of(config.source.pipeline)
        planned = plan_request(config, architecture, request)
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        _fail(error)
    frames = f", {request.num_frames} frames" if request.num_frames > 1 else ""
    title = f"{name} ({architecture.transformer}), height {request.height}, width {request.width}{frames}"
    Console().print(_plan_table(title, planned))


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="A model of the repository.")],
    full_steps: Annotated[int, typer.Option(help="How many steps shall be full.")],
    model_repository: Annotated[Path, typer.Option(help="Folder of models.")] = REPOSITORY,
    name: Annotated[str | None, typer.Option(help="Of the preset. Default: tuned-K for K full steps.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prompt, or a class label, a line. Default: four of our own.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="To choose by; as many others judge the result.")] = 8,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: the model's.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels. Default: the model's.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels. Default: the model's.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames of a video. Default: the model's.")] = None,
) -> None:
    """Finds the steps and the predictor that come nearest to the uncached pictures, and saves them as a preset."""
    from plugin.building.tuning import TuneRequest, tune_model
    from plugin.repository import InvalidConfig

    _quieten_libraries()
    fields = {
        "guidance_scale": guidance_scale,
        "num_inference_steps": steps,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
    folder = model_repository.resolve() / f"{model.removesuffix('_stream')}_stream"
    preset = name or f"tuned-{full_steps}"
    status = console.status("loading the model")

    def tell(tried: int, best: float) -> None:
        status.update(f"{tried} settings tried, best {best:.2f} dB")

    try:
        with status:
            tuned = tune_model(
                folder, preset, TuneRequest(full_steps, _lines("prompts", prompts), pictures, fields), tell
            )
    except KeyboardInterrupt:
        _fail("cancelled, nothing is saved")
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        _fail(error)
    table = Table(title=f"{preset}: {tuned.cache.predictor}, order {tuned.cache.order}, {tuned.cache.schedule}")
    for column in ("PSNR to the uncached pictures, dB", "spread evenly", "tuned"):
        table.add_column(column)
    table.add_row(f"{pictures} pictures it was chosen by", f"{tuned.even_psnr:.1f}", f"{tuned.psnr:.1f}")
    table.add_row(f"{pictures} others", f"{tuned.judged_even_psnr:.1f}", f"{tuned.judged_psnr:.1f}")
    Console().print(table)
    _say(f"saved in {tuned.path}; choose it by cache_preset={preset}, as the model's default by that parameter")


@app.command(context_settings=_FORWARD)
def bench(context: typer.Context) -> None:
    """Measures the embedded model on this machine's CPU; options as in `python -m benchmarks.cpu --help`."""
    import benchmarks.cpu
    from plugin.ops.server import ServerError

    try:
        benchmarks.cpu.main(context.args)
    except ServerError as error:
        _fail(error)


@app.command(context_settings=_FORWARD, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Compares a model's presets with its uncached pictures; options as in `triton-taylorseer evaluate --help`."""
    _quieten_libraries()
    try:
        import benchmarks.evaluate
    except ImportError as error:
        _fail(f"{error}: pip install 'triton-taylorseer[bench]'")
    benchmarks.evaluate.main(context.args)


@app.command(hidden=True)
def demo(output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out")) -> None:
    """Starts a server, makes ten pictures with the cache off and on, and compares them."""
    from clients import GenerationError
    from clients.demo import run
    from plugin.ops.server import Server, ServerConfig, ServerError, free_ports

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


def _engine_table(transformer: str, engine: BuiltEngine) -> Table:
    """What was built, with the device memory that the compiler planned."""

    def shapes(profile: Profile) -> str:
        smallest, largest = profile.smallest["hidden_states"], profile.largest["hidden_states"]
        return f"{profile.size}, batch {smallest[0]} to {largest[0]}: {largest[1]} tokens x {largest[2]}"

    def planned(nbytes: int | None) -> str:
        return "not told" if nbytes is None else _binary(nbytes)

    quantized = engine.quantized
    in_fp8 = quantized and f"{quantized.fp8_matmuls} of {quantized.matmuls} matrix multiplications in fp8"
    table = Table(title=f"{transformer}: {engine.flavour} {engine.version}", title_justify="left", show_header=False)
    for row in (
        ("for", ", ".join(engine.architectures)),
        ("precision", engine.dtype if quantized is None else f"{engine.dtype}; {in_fp8}"),
        ("sizes", "\n".join(map(shapes, engine.profiles))),
        ("layers", str(engine.layers)),
        ("engine", _binary(engine.engine_bytes)),
        ("device memory", f"{planned(engine.weights_bytes)} weights, {planned(engine.activation_bytes)} scratch"),
        ("built in", f"{engine.build_s:.1f} s"),
    ):
        table.add_row(*row)
    return table


def _quieten_libraries() -> None:
    """Leaves the terminal to the progress bars: what these libraries say at the side helps nobody who builds."""
    import logging
    import warnings

    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # that float16 cannot be run on a CPU: it can
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)


def _parts(text: str | None) -> list[str]:
    return text.split(",") if text else []


def _integer(name: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ValueError(f"{name} is {text!r}, must be an integer of at least 1")
    return int(text)


def _batch(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = _parts(text)
    if len(parts) != 3:
        raise ValueError(f"batch is {text!r}, must be MIN,OPT,MAX")
    smallest, usual, largest = (_integer("batch", part) for part in parts)
    return smallest, usual, largest


def _size(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2:
        raise ValueError(f"size is {text!r}, must be HEIGHTxWIDTH in pixels")
    height, width = (_integer("size", part) for part in parts)
    return height, width


def _video_size(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) not in (2, 3):
        raise ValueError(f"calibration-sizes is {text!r}, must be HEIGHTxWIDTH in pixels or HEIGHTxWIDTHxFRAMES")
    height, width, num_frames = (_integer("calibration-sizes", part) for part in (*parts, "1")[:3])
    return height, width, num_frames


def _lines(option: str, path: Path | None) -> tuple[str, ...]:
    """The lines of a file that are not empty, at least one."""
    if path is None:
        return ()
    lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not lines:
        raise ValueError(f"{option} is {path}, which is empty: must hold a prompt a line")
    return lines


class _BuildBar(Progress):
    """Stages of a build, and the outer phases of TensorRT's compiler within them."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), console=console
        )
        self.cancelled = False
        self._stage: TaskID | None = None
        self._phases: dict[str, tuple[int, TaskID | None]] = {}  # depth, and a bar unless it is too deep inside

    def stage(self, name: str) -> None:
        if self.cancelled:
            raise KeyboardInterrupt
        if self._stage is not None:
            self.update(self._stage, total=1, completed=1)
        self._stage = self.add_task(name, total=None)

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        depth = 0 if parent not in self._phases else self._phases[parent][0] + 1
        self._phases[name] = depth, self.add_task("  " * depth + f"  {name}", total=steps) if depth < 2 else None

    def step_done(self, name: str, step: int) -> bool:
        _, task = self._phases.get(name, (0, None))
        if task is not None:
            self.update(task, completed=step + 1)
        return not self.cancelled

    def phase_ended(self, name: str) -> None:
        _, task = self._phases.pop(name, (0, None))
        if task is not None:
            self.remove_task(task)


def _binary(nbytes: int) -> str:
    unit = 3 if nbytes >= 2**30 else 2 if nbytes >= 2**20 else 1
    return f"{nbytes / 1024**unit:.1f} {'KMG'[unit - 1]}iB"


class _Steps:
    """The bar of a request's steps, with the picture so far above it where the terminal can show it."""

    def __init__(self, preview: bool) -> None:
        self._bar = _steps_bar()
        self._live = Live(self._bar, console=console) if preview and console.is_terminal else None

    def __enter__(self) -> _Steps:
        (self._live or self._bar).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        (self._live or self._bar).__exit__(*error)

    def begin(self, title: str, steps: int | None) -> None:
        self._task = self._bar.add_task(title, total=steps)

    def step(self, step: int, steps: int, picture: Any) -> None:
        """So many steps are done; `picture` is (height, width, 3) uint8, or None."""
        self._bar.update(self._task, total=steps, completed=step)
        if self._live is not None and picture is not None:
            from PIL import Image
            from rich_pixels import Pixels

            image = Image.fromarray(picture)
            image.thumbnail((min(64, console.width), 64))  # two pixels of height are one line of text
            self._live.update(Group(Pixels.from_image(image), self._bar), refresh=True)


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
