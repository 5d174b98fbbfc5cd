"""`triton-taylorseer build`: a model's engine, made before it is served."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plugin.cli.options import ModelArgument, ModelRepository
from plugin.cli.terminal import BuildBar, binary, fail, lines_of, quieten_libraries, say, show, two_columns
from plugin.paths import REPOSITORY

if TYPE_CHECKING:
    from plugin.building.build_model import BuildRequest, Built
    from plugin.engines.tensorrt.record import BuiltEngine, Profile

Engine = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="onnxruntime, inductor, tensorrt or tensorrt-rtx. Default: the model's."),
]
Precision = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="bf16, fp16, fp32 or fp8, for TensorRT. Default: the model's dtype."),
]
Batch = Annotated[
    str | None, typer.Option(metavar="MIN,OPT,MAX", help="Rows of one engine call. Default: those of one request.")
]
Size = Annotated[
    str | None,
    typer.Option(metavar="HxW,…", help="Sizes in pixels, an optimization profile for each. Default: the model's."),
]
Frames = Annotated[
    str | None, typer.Option(metavar="N,…", help="Frames of videos, each with each size. Default: the model's.")
]
Target = Annotated[
    str | None,
    typer.Option(metavar="SM…", help="GPUs that TensorRT-RTX compiles for, as SM89,SM120. Default: the one here."),
]
Workspace = Annotated[
    float | None, typer.Option(metavar="GIB", help="Scratch memory in GiB that the engine may plan with.")
]
Refit = Annotated[bool, typer.Option("--refit", help="Weights can be exchanged later.")]
WeightStreaming = Annotated[bool, typer.Option("--weight-streaming", help="Weights can stay in host memory.")]
CalibrationPrompts = Annotated[
    Path | None, typer.Option(metavar="FILE", help="For fp8: file with a prompt a line. Default: four of our own.")
]
CalibrationSteps = Annotated[
    int | None, typer.Option(metavar="N", help="For fp8: steps to record of each prompt at each size. Default: 4.")
]
CalibrationSizes = Annotated[
    str | None,
    typer.Option(metavar="HxW[xFRAMES],…", help="For fp8: sizes to record at. Default: those that are built."),
]


def build(
    model: ModelArgument,
    model_repository: ModelRepository = REPOSITORY,
    engine: Engine = None,
    precision: Precision = None,
    batch: Batch = None,
    size: Size = None,
    num_frames: Frames = None,
    target: Target = None,
    workspace: Workspace = None,
    refit: Refit = False,
    weight_streaming: WeightStreaming = False,
    calibration_prompts: CalibrationPrompts = None,
    calibration_steps: CalibrationSteps = None,
    calibration_sizes: CalibrationSizes = None,
) -> None:
    """Builds a model's engine before it is served.

    Examples:

      triton-taylorseer build emoji
      triton-taylorseer build flux_dev --engine tensorrt --precision bf16 --batch 1,2,4 --size 1024x1024,768x1344
    """
    request = _request(
        {"batch": batch, "size": size, "num_frames": num_frames, "target": target, "sizes": calibration_sizes},
        engine=engine,
        precision=precision,
        workspace_bytes=None if workspace is None else int(workspace * 2**30),
        refit=refit,
        weight_streaming=weight_streaming,
        calibration_prompts=calibration_prompts,
        calibration_steps=calibration_steps,
    )
    name = model.removesuffix("_stream")
    _announce_all(name, _build(model_repository.resolve() / f"{name}_stream", request))


def _request(lists: Mapping[str, str | None], calibration_prompts: Path | None, **others: Any) -> BuildRequest:
    """What to build, from the texts of options that hold lists and the values of the others."""
    from plugin.building.build_model import BuildRequest

    parts = {name: text.split(",") if text else [] for name, text in lists.items()}
    try:
        return BuildRequest(
            batch=_batch(lists["batch"]),
            sizes=tuple(map(_size, parts["size"])),
            num_frames=tuple(_integer("num-frames", each) for each in parts["num_frames"]),
            targets=tuple(parts["target"]),
            calibration_prompts=lines_of("calibration-prompts", calibration_prompts),
            calibration_sizes=tuple(map(_video_size, parts["sizes"])),
            **others,
        )
    except (OSError, ValueError) as error:
        fail(error)


def _build(folder: Path, request: BuildRequest) -> list[Built]:
    """Builds in a thread of its own, so that this one notices Ctrl-C while the compiler works."""
    from plugin.building.build_model import build_model
    from plugin.engines.base import EngineError
    from plugin.repository import InvalidConfig

    quieten_libraries()
    bar = BuildBar()
    try:
        with bar, ThreadPoolExecutor(1) as worker:
            building = worker.submit(build_model, folder, request, bar)
            try:
                return building.result()
            except KeyboardInterrupt:
                bar.cancelled = True
                bar.console.print("ending at the next step of the build …")
                raise
    except KeyboardInterrupt:
        fail("cancelled")
    except (InvalidConfig, EngineError, OSError, ValueError, TypeError) as error:
        fail(error)


def _announce_all(model: str, built: Sequence[Built]) -> None:
    for each in built:
        _announce(model, each)
    if not built:
        say("the model's engine needs no build")


def _announce(model: str, built: Built) -> None:
    from plugin.repository import variable

    say(built.path)
    if built.engine is not None:
        show(two_columns(f"{built.transformer}: {built.engine.flavour} {built.engine.version}", _rows(built.engine)))
        settings = [f"{variable(model, name)}={value} " for name, value in built.overrides.items()]
        say(f"serve it: {''.join(settings)}triton-taylorseer serve --model {model}")


def _rows(engine: BuiltEngine) -> dict[str, str]:
    """What was built, with the device memory that the compiler planned."""

    def shapes(profile: Profile) -> str:
        smallest, largest = profile.smallest["hidden_states"], profile.largest["hidden_states"]
        return f"{profile.size}, batch {smallest[0]} to {largest[0]}: {largest[1]} tokens x {largest[2]}"

    def planned(nbytes: int | None) -> str:
        return "not reported" if nbytes is None else binary(nbytes)

    quantized = engine.quantized
    in_fp8 = quantized and f"{quantized.fp8_matmuls} of {quantized.matmuls} matrix multiplications in fp8"
    return {
        "for": ", ".join(engine.architectures),
        "precision": engine.dtype if quantized is None else f"{engine.dtype}; {in_fp8}",
        "sizes": "\n".join(map(shapes, engine.profiles)),
        "layers": str(engine.layers),
        "engine": binary(engine.engine_bytes),
        "device memory": f"{planned(engine.weights_bytes)} weights, {planned(engine.activation_bytes)} scratch",
        "built in": f"{engine.build_s:.1f} s",
    }


def _integer(option: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ValueError(f"{option} is {text!r}, must be an integer of at least 1")
    return int(text)


def _batch(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
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
