"""`triton-taylorseer generate`: a picture or a video from a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plugin.cli.batch import generate_batch
from plugin.cli.options import TRITON, Ca, Connection, Model, Tls, Url, with_fields
from plugin.cli.results import announce, check_output, output_for
from plugin.cli.terminal import StepsBar, fail

Prompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="What to show; models that take a class label take no prompt.")
]
_MEANINGS = {
    "input_image": "Picture to start from; repeatable. A video or an animated GIF stands for its frames.",
    "mask_image": "Picture of what to repaint in --image: white is repainted, black is kept.",
    "strength": "How much of --image changes: the share of the steps that run. 1 keeps nothing of it.",
}
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="File to write, or folder with --batch. Default: out.png, out.mp4 for a video, out for a batch.",
    ),
]
Batch = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with a prompt, or a JSON object of fields, on each line."),
]
Jobs = Annotated[int, typer.Option(metavar="N", min=1, help="Requests of a batch that are sent at once.")]
Retries = Annotated[
    int, typer.Option(metavar="N", min=0, help="How often a request is sent again if the server has no room for it.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", min=0, help="Longest time that a request may take, its retries included. Default: no limit."
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Every step full, as --interval 1.", rich_help_panel="Cache")]
Preview = Annotated[bool, typer.Option("--preview", help="Show previews of the picture in the terminal.")]
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print file and report of each request as a line of JSON on standard output.")
]


@with_fields(meanings=_MEANINGS)
def generate(
    fields: dict[str, Any],
    prompt: Prompt = None,
    url: Url = TRITON,
    model: Model = "emoji",
    tls: Tls = False,
    ca: Ca = None,
    output: Output = None,
    batch: Batch = None,
    jobs: Jobs = 4,
    retries: Retries = 2,
    timeout: Timeout = None,
    preview: Preview = False,
    json_lines: JsonLines = False,
    no_cache: NoCache = False,
) -> None:
    """Makes a picture or a video on a running server, or many of them with --batch.

    Request options that are left out get the model's defaults.

    Examples:

      triton-taylorseer generate "red apple, 3d" --seed 7 -o apple.png
      triton-taylorseer generate "red apple, 3d" --interval 6 --order 2
      triton-taylorseer generate "red apple, noto" --image apple.png --strength 0.6
      triton-taylorseer generate --batch prompts.txt -o pictures
    """
    if no_cache:
        fields["cache_interval"] = _without_cache(fields["cache_interval"])
    connection = Connection(url, model, tls, ca, retries)
    if batch is not None:
        if prompt is not None or preview:
            fail("--batch cannot be combined with a prompt or --preview")
        generate_batch(batch, output or Path("out"), fields | _files(fields), connection, jobs, timeout, json_lines)
        return
    if output is not None:
        check_output(output)
    title = prompt or _title(fields)
    generate_one(title, prompt, output, fields | _files(fields), connection, timeout, preview, json_lines)


def generate_one(
    title: str,
    prompt: str | None,
    output: Path | None,
    fields: dict[str, Any],
    connection: Connection,
    timeout_s: float | None,
    preview: bool,
    json_lines: bool,
) -> None:
    """Makes one picture or video, shows its steps, and writes the file."""
    from triton_taylorseer_client import Client, Generation, GenerationError

    try:
        with Client(**connection.arguments) as client, StepsBar(preview) as bar:
            bar.begin(title, fields["num_inference_steps"])
            for update in client.stream(prompt, **fields, preview=preview or None, timeout_s=timeout_s):
                if isinstance(update, Generation):
                    result = update
                    bar.step(result.report["num_steps"], result.report["num_steps"], result.image[0])
                else:
                    bar.wait(update.queue_position)
                    bar.step(update.step, update.num_steps, update.preview)
        output = output_for(output, result.is_video)
        result.save(output)
    except KeyboardInterrupt:
        fail("cancelled")
    except (GenerationError, OSError, ValueError) as error:
        fail(error)
    announce(output, result, json_lines)


def _title(fields: dict[str, Any]) -> str:
    """What a request without a prompt shows."""
    label, pictures = fields["class_label"], fields["input_image"]
    return pictures[0].name if pictures and label is None else f"class {label}"


def _files(fields: dict[str, Any]) -> dict[str, Any]:
    """The pictures, read once for all requests, and before any is sent."""
    from triton_taylorseer_client import InvalidArgument
    from triton_taylorseer_client.pictures import MOST_PICTURES, picture_files

    given = {name: fields[name] for name in MOST_PICTURES if fields[name] is not None}
    try:
        return {name: picture_files(name, paths) for name, paths in given.items()}
    except InvalidArgument as error:
        fail(error)


def _without_cache(interval: int | None) -> int:
    if interval not in (None, 1):
        fail(f"--interval is {interval} beside --no-cache, must be left out or 1")
    return 1
