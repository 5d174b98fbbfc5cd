"""`triton-taylorseer plan`: what a request costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin.cli.options import ModelArgument, ModelRepository, with_fields
from plugin.cli.terminal import binary, fail, show, two_columns
from plugin.paths import REPOSITORY

if TYPE_CHECKING:
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
def plan(model: ModelArgument, fields: dict[str, Any], model_repository: ModelRepository = REPOSITORY) -> None:
    """Says what a request will cost, without loading the model.

    Request options that are left out get the model's defaults.

    Examples:

      triton-taylorseer plan flux_dev --height 768 --width 768 --interval 6
      triton-taylorseer plan flux_dev --image photo.jpg --strength 0.6
    """
    from plugin.config import ModelConfig
    from plugin.repository import InvalidConfig
    from plugin.serving.plan import architecture_of, example_request, plan_request

    name = model.removesuffix("_stream")
    try:
        config = ModelConfig.from_folder(model_repository.resolve() / f"{name}_stream")
        architecture = architecture_of(config.source.pipeline)
        files = {name: _files(fields.pop(name)) for name in ("input_image", "mask_image")}
        tasks = architecture.tasks if any(files.values()) else None
        request = example_request(config, tasks, **fields, **files)
        planned = plan_request(config, architecture, request)
    except (InvalidConfig, OSError, ValueError, TypeError) as error:
        fail(error)
    frames = f", {request.num_frames} frames" if request.num_frames > 1 else ""
    title = f"{name} ({architecture.transformer}), height {request.height}, width {request.width}{frames}"
    show(two_columns(title, _rows(planned, request) | {"takes": _takes(architecture.tasks)}))


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
