"""`triton-taylorseer plan`: what a request costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plugin.cli.options import ModelRepository, with_fields
from plugin.cli.terminal import binary, counting_bar, fail, quieten_libraries, show, two_columns
from plugin.paths import REPOSITORY

if TYPE_CHECKING:
    from plugin.config import ModelConfig
    from plugin.request import GenerationRequest
    from plugin.serving.plan import Plan
    from plugin.tasks import Task

_FIELDS = (
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "height",
    "width",
    "num_frames",
    "input_image",
    "mask_image",
    "strength",
    "cache_preset",
    "cache_interval",
    "cache_order",
    "cache_warmup_steps",
    "cache_predictor",
    "cache_schedule",
)


_MEANINGS = {
    "negative_prompt": "Negative prompt; only its presence matters.",
    "input_image": "Picture that the request brings; repeatable. Only its size matters.",
    "mask_image": "Its mask; only its size matters.",
}


@with_fields(*_FIELDS, meanings=_MEANINGS)
def plan(
    fields: dict[str, Any],
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model of the repository. With --memory: or all of them.")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Say what fits on GPUs of 16, 24, 48 and 80 GB.")] = False,
    model_repository: ModelRepository = REPOSITORY,
) -> None:
    """Says what a request will cost, or with --memory what the model needs and on which GPU it fits. Nothing is loaded
    or downloaded.

    Request options that are left out get the model's defaults.

    Examples:

      triton-taylorseer plan flux_dev --height 768 --width 768 --interval 6
      triton-taylorseer plan flux_dev --image photo.jpg --strength 0.6
      triton-taylorseer plan flux_dev --memory
    """
    from plugin.repository import InvalidConfig

    repository, name = model_repository.resolve(), (model or "").removesuffix("_stream")
    try:
        if not memory:
            _plan_request(repository, name, fields)
        elif model is not None:
            _plan_memory(repository, name, fields)
        else:
            _plan_memory_of_all(repository, fields)
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        fail(error)


def _plan_request(repository: Path, name: str, fields: dict[str, Any]) -> None:
    from plugin.serving.plan import architecture_of, plan_request

    if not name:
        raise ValueError("MODEL is missing, must be a model of the repository: only with --memory it may be left out")
    config = _config_of(repository, name)
    architecture = architecture_of(config.source.pipeline)
    request = _request_of(config, fields)
    planned = plan_request(config, architecture, request)
    title = f"{name} ({architecture.transformer}), {_size(request)}"
    show(two_columns(title, _rows(planned, request) | {"takes": _takes(architecture.tasks)}))


def _plan_memory(repository: Path, name: str, fields: dict[str, Any]) -> None:
    from plugin.cli.memory_tables import fits_table, memory_table, weights_table
    from plugin.serving.fitting import fits
    from plugin.serving.memory import plan_memory

    quieten_libraries()
    config = _config_of(repository, name)
    request = _request_of(config, fields)
    planned = plan_memory(config, request)
    show(weights_table(f"{name}, {_size(request)}", planned, config.engine))
    show(memory_table(planned))
    show(fits_table(fits(config, request), config))


def _plan_memory_of_all(repository: Path, fields: dict[str, Any]) -> None:
    from plugin.cli.memory_tables import all_fits_table
    from plugin.serving.fitting import fits
    from plugin.serving.memory import plan_memory

    if given := [name for name, value in fields.items() if value is not None]:
        raise ValueError(f"{given[0]} is given, must be left out without a MODEL: each model has its own default size")
    quieten_libraries()
    names = sorted(path.parent.name.removesuffix("_stream") for path in repository.glob("*_stream/config.pbtxt"))
    if not names:
        raise FileNotFoundError(f"{repository} holds no model, must have folders of models")
    rows = {}
    with counting_bar() as bar:
        for name in bar.track(names, description="models"):
            config = _config_of(repository, name)
            request = _request_of(config, {})
            rows[name] = plan_memory(config, request), fits(config, request)
    show(all_fits_table(rows))


def _config_of(repository: Path, name: str) -> ModelConfig:
    from plugin.config import ModelConfig

    return ModelConfig.from_folder(repository / f"{name}_stream")


def _request_of(config: ModelConfig, fields: dict[str, Any]) -> GenerationRequest:
    from plugin.serving.plan import architecture_of, example_request

    files = {name: _files(fields.get(name)) for name in ("input_image", "mask_image")}
    tasks = architecture_of(config.source.pipeline).tasks if any(files.values()) else None
    return example_request(config, tasks, **{**fields, **files})


def _size(request: GenerationRequest) -> str:
    frames = f", {request.num_frames} frames" if request.num_frames > 1 else ""
    return f"height {request.height}, width {request.width}{frames}"


def _files(paths: list[Path] | Path | None) -> list[bytes] | None:
    """The files of an option that may be repeated, or not."""
    if paths is None:
        return None
    return [path.read_bytes() for path in (paths if isinstance(paths, list) else [paths])]


def _takes(tasks: Sequence[Task]) -> str:
    """What a model can do with pictures: a line for each task."""
    return "\n".join(map(str, tasks))


def _rows(plan: Plan, request: GenerationRequest) -> dict[str, str]:
    def anchors(anchor_bytes: int) -> str:
        return f"{plan.branches} x {plan.anchors} anchors of {binary(anchor_bytes)}"

    full_steps = ", ".join(map(str, plan.full_steps))
    scheduled = request.num_inference_steps
    shortened = {"steps": f"{plan.num_steps} of {scheduled}"} if plan.num_steps < scheduled else {}
    cache = request.cache
    forecasts = {"forecasts": f"{cache.predictor}, order {cache.order}"} if cache.enabled else {}
    pictures = {"pictures in memory": binary(plan.picture_bytes)} if plan.picture_bytes else {}
    return shortened | {
        "full steps": f"{len(plan.full_steps)} of {plan.num_steps}: {full_steps}",
        **forecasts,
        "speed-up, upper bound": f"{plan.speed_up_bound:.2f}x: steps / full steps",
        "guidance branches": str(plan.branches),
        "feature": f"{plan.tokens} tokens x {plan.width}",
        "cache": f"{binary(plan.cache_bytes)}: {anchors(plan.anchor_bytes)}",
        "cache of every module": f"{binary(plan.module_cache_bytes)}: {anchors(plan.module_anchor_bytes)}",
        **pictures,
    }
