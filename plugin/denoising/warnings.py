"""What a request's client should know about its settings: text that was cut, settings that change nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import LockedTokenizer
from plugin.request import GenerationRequest
from plugin.sizing import is_stretched
from taylorseer import CacheSession

FEW_STEPS = 10  # in shorter runs a warning says what that means for forecasts: docs/quality.md has the figures
NOISE_RATIOS = (0.45, 2.2)  # learnt weights were measured to hold from half to twice the noise: docs/quality.md
_CLIP_TOKENS = 77
_SPECIAL_TOKENS = 4  # at most, that a tokenizer adds


def warnings_of(
    host: PipelineHost, request: GenerationRequest, session: CacheSession, max_sequence_length: int | None
) -> list[str]:
    """Sentences about a request that has been run; mostly none.

    Args:
        host: of the model.
        request: what was made.
        session: the cache of its run.
        max_sequence_length: text tokens, or None for the pipeline's default.
    """
    return [
        *_cut(host.pipe, "prompt", request.prompt, max_sequence_length),
        *_cut(host.pipe, "negative_prompt", request.negative_prompt, max_sequence_length),
        *_without_effect(host, request),
        *_too_short(session),
        *_learnt_elsewhere(request, session),
        *_stretched(request),
    ]


def _cut(pipe: Any, field: str, text: str | None, max_sequence_length: int | None) -> Iterator[str]:
    """For each encoder that reads less of a text than there is. diffusers logs that, where no client reads it."""
    for name, tokenizer in pipe.components.items():
        if text is None or tokenizer is None or not name.startswith("tokenizer"):
            continue
        read = _tokens_read(pipe, tokenizer, max_sequence_length)
        if len(text.encode()) + _SPECIAL_TOKENS <= read:  # a token has at least one byte
            continue
        tokens = len(tokenizer(text, truncation=False)["input_ids"])
        if tokens > read:
            yield f"{field} has {tokens} tokens, of which the first {read} are read ({name})"


def _tokens_read(pipe: Any, tokenizer: Any, max_sequence_length: int | None) -> int:
    """How many tokens of a text a pipeline hands to an encoder: as many as its tokenizer allows, if that is CLIP's
    (diffusers 0.42, `_get_clip_prompt_embeds`), else `max_sequence_length`."""
    if max_sequence_length is None:
        parameter = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
        max_sequence_length = parameter.default if parameter else _CLIP_TOKENS
    own = getattr(tokenizer, "model_max_length", _CLIP_TOKENS)
    kind = tokenizer.kind if isinstance(tokenizer, LockedTokenizer) else type(tokenizer)
    return min(own, _CLIP_TOKENS) if "CLIP" in kind.__name__ else max_sequence_length


def _without_effect(host: PipelineHost, request: GenerationRequest) -> Iterator[str]:
    if request.negative_prompt is not None and host.family.guidance_branches(request) == 1:
        yield (
            f"negative_prompt changes nothing where guidance_scale is {request.guidance_scale:g}: "
            "guidance_scale must be above 1"
        )


def _stretched(request: GenerationRequest) -> Iterator[str]:
    """Where a picture is resized to a result of another shape; what is appended keeps its own."""
    if request.task is None or request.task.appended:
        return
    for each in request.pictures[:2]:
        if is_stretched(each.width, each.height, request.width, request.height):
            yield (
                f"{each.name} is {each.width} x {each.height} and was stretched to {request.width} x {request.height}: "
                "crop it, or ask for a height and width of its ratio"
            )
            return


def _too_short(session: CacheSession) -> Iterator[str]:
    num_steps, full, learnt = session.num_steps, len(session.full_steps), session.config.learnt
    if session.learnt is not None and learnt is not None and num_steps in [run.num_steps for run in learnt.runs]:
        return  # it was measured when it was learnt
    if full < num_steps < FEW_STEPS:
        yield (
            f"num_inference_steps is {num_steps}: in runs of fewer than {FEW_STEPS} steps there is little to save and "
            "a forecast spans much of the run; models distilled for so few have not been measured. cache_interval=1 "
            "turns the cache off"
        )


def _learnt_elsewhere(request: GenerationRequest, session: CacheSession) -> Iterator[str]:
    """Where a run from pure noise goes through other noise than the one its weights were learnt along. Runs that begin
    with a picture have less noise throughout, and were measured to keep their quality."""
    ratio = session.learnt.noise_ratio if session.learnt is not None else None
    whole = session.num_steps == request.num_inference_steps
    if whole and ratio is not None and not NOISE_RATIOS[0] <= ratio <= NOISE_RATIOS[1]:
        yield (
            f"at the middle step the noise is {ratio:.2g} times that of the run which the preset was learnt along: "
            "evenly spread full steps may be closer to the uncached result. Tune with this scheduler"
        )
