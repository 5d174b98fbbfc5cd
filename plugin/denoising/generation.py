"""Runs one request on a host: from a GenerationRequest to pixels and a report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from plugin.denoising.events import NoEvents, Pixels, RunEvents
from plugin.denoising.host import PipelineHost
from plugin.denoising.picture_arguments import accepted, call_arguments, pipeline_class_of
from plugin.denoising.run import RunReporter
from plugin.denoising.warnings import warnings_of
from plugin.request import GenerationRequest
from plugin.strict_json import to_json
from taylorseer import CacheSession


class NotFinite(ArithmeticError):
    """A run's numbers overflowed, so that it has no picture; the message says what may help."""


@dataclass(frozen=True)
class Report:
    """What a generation did; times in seconds.

    Attributes:
        num_steps: denoising steps.
        full_steps: the indices of the full ones.
        engine_calls: calls of the block stack: full steps, times guidance branches that are separate calls.
        cache_bytes: memory of the anchors.
        audits: [step, relative L2 distance between forecast and computed features], of the full steps that could have
            been forecast.
        queue_s: from arrival to the start of the work.
        encode_s: from there to the first step: text encoding, noise, schedule.
        denoise_s: the steps.
        decode_s: the autoencoder.
        total_s: from arrival to the picture.
        seed: the seed used.
        cache_interval: the interval used.
        cache_predictor: the predictor used, "learnt" for weights that a preset holds.
        stretched_by: "deadline" or "load" where one of them made that larger than what was asked for, else None.
        warnings: what the client should know about its settings, sentences; mostly none.
        engine: the engine's name.
        height, width: pixels.
        num_frames: 1 for a picture.
        fps: frames per second that a video is meant to be shown at.
    """

    num_steps: int
    full_steps: list[int]
    engine_calls: int
    cache_bytes: int
    audits: list[tuple[int, float]]
    queue_s: float
    encode_s: float
    denoise_s: float
    decode_s: float
    total_s: float
    seed: int
    cache_interval: int
    cache_predictor: str
    stretched_by: str | None
    warnings: list[str]
    engine: str
    height: int
    width: int
    num_frames: int
    fps: int

    def to_json(self) -> str:
        """The report as one JSON object."""
        return to_json(asdict(self))


@dataclass(frozen=True)
class Generation:
    """The result of one request: `image` is (frames, height, width, 3) uint8."""

    image: Pixels
    report: Report


def generate(
    host: PipelineHost,
    request: GenerationRequest,
    events: RunEvents | None = None,
    *,
    max_sequence_length: int | None = None,
    preview_interval: int = 5,
    arrived: float | None = None,
    notes: Sequence[str] = (),
) -> Generation:
    """Makes the picture of a request in the calling thread.

    Args:
        host: the loaded model.
        request: the valid request.
        events: what the run reports to; may end it by raising.
        max_sequence_length: text tokens, or None for the pipeline's default.
        preview_interval: steps from one preview to the next.
        arrived: `time.perf_counter()` at arrival; None for now.
        notes: sentences that come first among the report's warnings.

    Raises:
        Cancelled, DeadlinePassed: raised by `events`.
        InvalidRequest: a picture is damaged.
        NotFinite: the decoded picture has NaN in it.
    """
    started = time.perf_counter()
    reporter = RunReporter(host.family, request, events or NoEvents(), preview_interval, host.packer is not None)
    pipe, run = host.prepare(request.cache, reporter, pipeline_class_of(request.task, host.pipe), ticket=reporter)
    reporter.follow(pipe, run)
    try:
        output = pipe(
            **accepted(pipe, call_arguments(host.family, request, max_sequence_length)),
            num_inference_steps=request.num_inference_steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
        )
        done = time.perf_counter()
        pixels = output[0][0] if output[0].ndim == 5 else output[0]  # a video comes in a batch of one
        image = _levels(pixels)
        clock = _Clock(started if arrived is None else arrived, started, done)
        warnings = [*notes, *warnings_of(host, request, run.session, max_sequence_length)]
        return Generation(image, _report(request, image, run.session, reporter, host.engine_name, clock, warnings))
    finally:
        run.settle()
        if host.packer is not None:
            host.packer.leave(reporter)
        reporter.release()


def _levels(pixels: npt.NDArray[np.float32]) -> Pixels:
    """Pixels of 0 to 1 as 0 to 255; same shape."""
    if not np.isfinite(pixels.sum()):  # NaN reaches the sum; this takes a tenth of the time of the cast below
        raise NotFinite(
            "the picture has values that are not finite: numbers overflowed on the way, where another seed, "
            "guidance_scale or cache_order may help, or a dtype of more range for the model"
        )
    return (pixels * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class _Clock:
    """`time.perf_counter()` at a request's arrival, at the start of its work and at its end."""

    arrived: float
    started: float
    done: float


def _report(
    request: GenerationRequest,
    image: Pixels,
    session: CacheSession,
    run: RunReporter,
    engine: str,
    clock: _Clock,
    warnings: list[str],
) -> Report:
    num_frames, height, width, _ = image.shape  # HiDream keeps only the ratio of what is asked for
    return Report(
        num_steps=session.num_steps,
        full_steps=list(session.full_steps),
        engine_calls=session.engine_calls,
        cache_bytes=session.nbytes,
        audits=[(each.step, each.audit) for each in session.records if each.audit is not None],
        queue_s=clock.started - clock.arrived,
        encode_s=run.first_step - clock.started,
        denoise_s=run.last_output - run.first_step,
        decode_s=clock.done - run.last_output,
        total_s=clock.done - clock.arrived,
        seed=request.seed,
        cache_interval=request.cache.interval,
        cache_predictor=request.cache.predictor,
        stretched_by=request.stretched_by and request.stretched_by.value,
        warnings=warnings,
        engine=engine,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=request.fps,
    )
